"""The registered models that requests are checked against: those of our file, and what others registered."""

from __future__ import annotations

import time
from collections.abc import Sequence

from loguru import logger

from shared.errors import InvalidRequest
from shared.jobs import JobRequest
from shared.registry import Registration
from shared.store.fleet import FleetStore
from shared.submission import check_known

_FRESH_S = 1.0


class Registry:
    """Registrations in Redis, read at most once a second."""

    def __init__(self, fleet: FleetStore, own: Sequence[Registration]) -> None:
        self._fleet = fleet
        self._own = tuple(own)
        self._known: tuple[Registration, ...] = ()
        self._read_at = float("-inf")

    @property
    def known(self) -> tuple[Registration, ...]:
        """All registered models as they were last read; a new tuple after each reading."""
        return self._known

    async def publish(self) -> None:
        """Write the models of the settings; those of an earlier file go, those from elsewhere stay."""
        changed = await self._fleet.register(self._own, replace_file=True)
        if changed:
            logger.info("registered models changed: {}", ", ".join(sorted(changed)))
        await self._read()

    async def current(self) -> tuple[Registration, ...]:
        """All registered models, at most a second old."""
        if time.monotonic() - self._read_at >= _FRESH_S:
            await self.refresh()
        return self._known

    async def check(self, job: JobRequest) -> None:
        """Raises ``InvalidRequest`` for a model or an agent type that nobody registered."""
        try:
            check_known(job, await self.current())
        except InvalidRequest:
            # It may have been registered a moment ago, through another api.
            await self.refresh()
            check_known(job, self._known)

    async def refresh(self) -> None:
        """Read them again. None at all means that Redis lost its data: ours are then written again."""
        await self._read()
        if not self._known:
            await self.publish()

    async def _read(self) -> None:
        self._known = await self._fleet.registrations()
        self._read_at = time.monotonic()
