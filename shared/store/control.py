"""What somebody asks for over HTTP: models into and out of the registry, entries of ``orch:control``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from shared.config import HistorySettings
from shared.keys import Keys
from shared.registry import Registration
from shared.store.client import translating
from shared.store.scripts import Scripts, encoded


class PutOutcome(StrEnum):
    CREATED = "CREATED"
    REPLACED = "REPLACED"
    SAME = "SAME"
    EXISTS = "EXISTS"  # and it was not to be replaced
    FILE = "FILE"  # the entry of a configuration file wins


class RemoveOutcome(StrEnum):
    REMOVED = "REMOVED"
    UNKNOWN = "UNKNOWN"
    FILE = "FILE"


class ControlStore:
    """One replay-safe script a change; raises ``StoreUnavailable`` when Redis can't serve now."""

    def __init__(self, redis: Redis, keys: Keys, history: HistorySettings, retention_s: float) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, keys, history, retention_s)

    async def put_model(self, entry: Registration, *, replace: bool) -> PutOutcome:
        """Register a model; what was learned of it stays only if its server is still the same."""
        order = {
            "nonce": _nonce(),
            "name": entry.name,
            "registration": entry.model_dump_json(exclude_defaults=True),
            "replace": replace,
        }
        return PutOutcome(await self._run("put_model", order))

    async def remove_model(self, name: str) -> RemoveOutcome:
        """Take a model out: nothing new is sent to it, its jobs in flight end as they will."""
        return RemoveOutcome(await self._run("remove_model", {"nonce": _nonce(), "name": name}))

    async def announce(self, kind: str, fields: Mapping[str, str]) -> str:
        """Write an entry into ``orch:control``, once however often it is sent; the ``id`` that it carries."""
        nonce = _nonce()
        flat = [item for pair in fields.items() for item in pair]
        await self._run("announce", {"nonce": nonce, "kind": kind, "fields": flat})
        return nonce

    async def _run(self, name: str, order: Mapping[str, Any]) -> str:
        async with translating(self._redis):
            return str(await self._scripts.run(name, encoded(order)))


def _nonce() -> str:
    return secrets.token_hex(16)
