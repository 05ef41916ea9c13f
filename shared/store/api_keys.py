"""API keys in ``orch:api_keys``: by name, with the hash of the secret, a role, limits and allowed models."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from redis.asyncio import Redis

from shared.config import HistorySettings
from shared.errors import InvalidRequest
from shared.keys import Keys
from shared.store.client import translating
from shared.store.records import KeyLimits
from shared.store.scripts import Scripts, encoded

_PREFIX = "orch"
_ID_BYTES = 6
_SECRET_BYTES = 32

Limit = Annotated[int, Field(ge=1, le=100_000)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Role(StrEnum):
    USER = "user"  # hands in jobs and reads
    ADMIN = "admin"  # also changes the registry, rebalances and benchmarks


class CreateOutcome(StrEnum):
    CREATED = "CREATED"
    EXISTS = "EXISTS"


class RevokeOutcome(StrEnum):
    REVOKED = "REVOKED"
    UNKNOWN = "UNKNOWN"


class ApiKey(BaseModel):
    """One key as stored. ``hash``: SHA-256 of the whole key in hex, None once it is revoked.

    ``models``: the names that a request may give, None for all. Times in ms of Redis' clock.
    """

    model_config = ConfigDict(frozen=True)

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    role: Role = Role.USER
    in_flight: Limit | None = None
    queued: Limit | None = None
    per_minute: Limit | None = None
    models: Annotated[tuple[ModelName, ...], Field(min_length=1)] | None = None
    created_ms: int = 0
    revoked_ms: int | None = None

    @property
    def limits(self) -> KeyLimits | None:
        """None where none is set."""
        found = KeyLimits(self.name, self.in_flight, self.queued, self.per_minute)
        return None if found == KeyLimits(self.name) else found


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """Every key that was ever made; ``unreadable``: names whose entries somebody broke by hand."""

    keys: tuple[ApiKey, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether a key was ever made."""
        return bool(self.keys or self.unreadable)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key and when it was last seen in use, to about a minute; None: never."""

    key: ApiKey
    used_ms: int | None


def new_key(name: str, **fields: Any) -> tuple[str, ApiKey]:
    """A fresh key and what is stored of it; raises ``InvalidRequest`` naming the wrong field.

    256 random bits can't be guessed however fast a hash is: SHA-256 will do where a password would need a
    slow one.
    """
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"{_PREFIX}-{key_id}-{secrets.token_urlsafe(_SECRET_BYTES)}"
    try:
        return text, ApiKey(id=key_id, name=name, hash=digest(text), **fields)
    except ValidationError as error:
        item = error.errors()[0]
        raise InvalidRequest(str(item["loc"][0]), f"{item['input']!r}: {item['msg']}") from None


def digest(text: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def id_of(text: str) -> str:
    """The id in what is presented as a key, empty if there is none."""
    parts = text.split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else ""


class ApiKeyStore:
    """One replay-safe script a change; raises ``StoreUnavailable`` when Redis can't serve now."""

    def __init__(self, redis: Redis, keys: Keys, history: HistorySettings, retention_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = Scripts(redis, keys, history, retention_s)

    async def create(self, key: ApiKey) -> CreateOutcome:
        """Store a key under its name, unless a key that is not revoked has it."""
        # Without nulls, and without lists that may be empty: Lua would write them back as objects.
        entry = key.model_dump_json(exclude_none=True, exclude={"created_ms"})
        return CreateOutcome(
            await self._run("create_api_key", encoded({"name": key.name, "id": key.id, "entry": entry}))
        )

    async def revoke(self, name: str) -> RevokeOutcome:
        """Make a key worthless; its entry stays, so that it can be read who had one."""
        return RevokeOutcome(await self._run("revoke_api_key", name))

    async def touch(self, names: Collection[str]) -> None:
        """Note that these keys are in use now."""
        await self._run("touch_api_keys", *names)

    async def read(self) -> StoredKeys:
        """All keys, by name."""
        async with translating(self._redis):
            entries: Any = await self._redis.hgetall(self._keys.static("api_keys"))
        found = {name: _read(name, entries[name]) for name in sorted(entries)}
        keys = tuple(key for key in found.values() if key is not None)
        return StoredKeys(keys, tuple(name for name, key in found.items() if key is None))

    async def listed(self) -> list[KeyUse]:
        """Those that can be read, with when each was last used."""
        found = (await self.read()).keys
        async with translating(self._redis):
            used: Any = await self._redis.hgetall(self._keys.static("api_keys_used"))
        return [KeyUse(key, int(used[key.name]) if key.name in used else None) for key in found]

    async def _run(self, name: str, *args: str | bytes) -> Any:
        async with translating(self._redis):
            return await self._scripts.run(name, *args)


def _read(name: str, entry: str) -> ApiKey | None:
    try:
        key = ApiKey.model_validate(json.loads(entry))
    except ValueError:
        return None
    return key if key.name == name else None
