"""What the api does beside answering: check Redis, read the keys, publish the models, keep its heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from loguru import logger

from services.api.keyring import Keyring
from services.api.registry import Registry
from shared.errors import StoreUnavailable
from shared.presence import Presence

_LOOK_S = 1.0
_AGAIN_S = 0.25
_LEAVE_S = 1.0


class Upkeep:
    """Runs beside the server; ``usable`` is set once Redis has been checked for the first time."""

    def __init__(
        self,
        check: Callable[[], Awaitable[list[str]]],
        registry: Registry,
        keyring: Keyring,
        presence: Presence,
    ) -> None:
        """``check`` waits for Redis and returns warnings; it raises ``StoreUnusable``."""
        self._check = check
        self._registry = registry
        self._keyring = keyring
        self._presence = presence
        self.usable = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled.

        Raises ``StoreUnusable``, ``InstanceTaken`` if our name is another's, and ``ConfigError`` where an API
        key is needed and none is there.
        """
        await self._enter()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._presence.run())
            group.create_task(self._watch())
            group.create_task(self._keyring.run())

    async def leave(self) -> None:
        """Take this process off the list of services, if it ever got on it."""
        if self.usable.is_set():
            with suppress(TimeoutError):  # a hanging Redis must not keep us: the entry then ages away
                async with asyncio.timeout(_LEAVE_S):
                    await self._presence.retire()

    async def _enter(self) -> None:
        while True:
            for warning in await self._check():
                logger.warning("{}", warning)
            try:
                await self._keyring.load()
                instance = await self._presence.enroll()
                await self._registry.publish()
            except StoreUnavailable as error:
                logger.debug("not entered yet: {}", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            self.usable.set()
            logger.info("api {} is up: Redis answers", instance)
            return

    async def _watch(self) -> None:
        """Look at Redis every second; after it was away, check it and publish again what it may have lost."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._registry.refresh()
            except StoreUnavailable as error:
                logger.warning("Redis does not answer ({}): requests get 503 until it does", error)
                await self._return()
                logger.info("Redis answers again")

    async def _return(self) -> None:
        while True:
            await self._check()
            try:
                await self._registry.publish()
            except StoreUnavailable as error:
                logger.debug("Redis is not back yet: {}", error)
                await asyncio.sleep(_AGAIN_S)
            else:
                return
