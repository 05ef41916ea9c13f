"""The API keys as this process knows them: read every second and when one changes, never for a request."""

from __future__ import annotations

import asyncio
import hmac
import time

from loguru import logger

from services.api.access import Access
from shared.config import ApiSettings
from shared.errors import ConfigError, StoreUnavailable
from shared.store.api_keys import ApiKey, ApiKeyStore, StoredKeys, digest, id_of
from shared.store.streams import Follower

_AWAY_S = 0.25
_NOTED_EVERY_S = 60.0
_NO_HASH = "0" * 64


class Keyring:
    """Which keys are good; ``control`` follows ``orch:control``, where every change of a key is said."""

    def __init__(self, store: ApiKeyStore, settings: ApiSettings, control: Follower) -> None:
        self._store = store
        self._settings = settings
        self._control = control
        self._stored = StoredKeys()
        self._by_id: dict[str, tuple[ApiKey, Access]] = {}
        self._loaded = False
        self._used: set[str] = set()
        self._noted_at: dict[str, float] = {}

    @property
    def loaded(self) -> bool:
        """Whether the keys were ever read; before that nobody can be let in who needs one."""
        return self._loaded

    @property
    def in_force(self) -> bool:
        """Whether nothing but the health check is answered without a key."""
        return self._settings.demands_key or bool(self._stored)

    def access(self, presented: str) -> Access | None:
        """Whose key it is, None if it is none that is good."""
        key, access = self._by_id.get(id_of(presented), (None, None))
        known = _NO_HASH if key is None or key.hash is None else key.hash
        # In the same time whatever was presented.
        if not hmac.compare_digest(known, digest(presented)) or access is None:
            return None
        self._used.add(access.name)
        return access

    async def load(self) -> None:
        """Read the keys; raises ``StoreUnavailable``, and ``ConfigError`` where the one that is needed lacks.

        The latter at the first time only: an api that runs stays up, and shut, when its last key goes.
        """
        stored = await self._store.read()
        if not self._loaded and self._settings.demands_key and not any(key.hash for key in stored.keys):
            raise ConfigError(_no_key(self._settings))
        if stored != self._stored or not self._loaded:
            self._take(stored)
        self._loaded = True

    async def run(self) -> None:
        """Follow the changes until cancelled; while Redis is away, what was read last holds."""
        while True:
            try:
                await self._control.settle()
                await self._control.read()
                # Whatever was read, or nothing for a second: one may have been changed by hand.
                await self.load()
                await self._note_use()
            except StoreUnavailable as error:
                logger.debug("the API keys can't be read now: {}", error)
                await asyncio.sleep(_AWAY_S)

    def _take(self, stored: StoredKeys) -> None:
        good = [key for key in stored.keys if key.hash is not None]
        self._by_id = {key.id: (key, Access.of(key)) for key in good}
        self._stored = stored
        if stored.unreadable:
            logger.warning("API keys that can't be read in Redis: {}", ", ".join(stored.unreadable))
        logger.info("{}", self._state(good))

    def _state(self, good: list[ApiKey]) -> str:
        if good:
            names = ", ".join(f"{key.name} ({key.role})" for key in good)
            return f"API keys are asked for; good ones: {names}"
        if self.in_force:
            return "API keys are asked for and none is good: only /healthz answers"
        return "no API key was ever made: none is asked for"

    async def _note_use(self) -> None:
        now = time.monotonic()
        used, self._used = self._used, set()
        due = {name for name in used if now - self._noted_at.get(name, -_NOTED_EVERY_S) >= _NOTED_EVERY_S}
        if due:
            await self._store.touch(due)
            self._noted_at |= dict.fromkeys(due, now)


def warn_if_open(settings: ApiSettings) -> None:
    """Say loudly that whoever reaches the port may do everything."""
    if settings.insecure and not settings.is_local:
        logger.warning(
            "INSECURE: api.insecure is set and api.host = {} is not loopback: as long as no API key is made, "
            "whoever reaches port {} may do everything",
            settings.host,
            settings.port,
        )


def _no_key(settings: ApiSettings) -> str:
    why, otherwise = (
        f"api.host = {settings.host!r} can be reached from other machines",
        "set api.insecure: true",
    )
    if settings.require_key:
        why, otherwise = "api.require_key is set", "leave it out"
    return (
        f"{why}, and there is no API key: make one with `gpu-orchestrator keys create NAME --role admin` "
        f"while Redis runs (start once without this setting), or {otherwise}"
    )
