"""The registered models that requests are checked against: those of our file, and what others registered."""

from __future__ import annotations

import time
from collections.abc import Sequence

from loguru import logger

from shared.errors import InvalidRequest, StoreUnavailable
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
        self._unpublished = False
        self._known: tuple[Registration, ...] = ()
        self._read_at = float("-inf")

    @property
    def known(self) -> tuple[Registration, ...]:
        """All registered models as they were last read, with the kinds that were discovered; a new tuple each
        time."""
        return self._known

    async def replace(self, own: Sequence[Registration]) -> None:
        """Take these for the models of our file, and write them now or, if Redis is away, once it is back."""
        if tuple(own) == self._own:
            return
        self._own, self._unpublished = tuple(own), True
        try:
            await self.refresh()
        except StoreUnavailable as error:
            logger.warning("the models of the changed file are registered once Redis answers: {}", error)
        except Exception as error:
            # Refused, say by an ACL: it would be refused at each refresh again, and those must go on.
            self._unpublished = False
            logger.error(
                "the models of the changed file are not registered, change the file again once Redis takes "
                "them: {}: {}",
                type(error).__name__,
                error,
            )

    async def publish(self) -> None:
        """Write the models of the settings; those of an earlier file go, those from elsewhere stay."""
        own = self._own
        changed = await self._fleet.register(own, replace_file=True)
        if own is self._own:
            self._unpublished = False
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
        """Read them again. Ours are written if they were not yet, or if Redis has none: it lost its data."""
        await self._read()
        if self._unpublished or not self._known:
            await self.publish()

    async def _read(self) -> None:
        entries = await self._fleet.registrations()
        kinds = await self._fleet.kinds([entry.name for entry in entries if entry.backend is None])
        self._known = tuple(
            entry.model_copy(update={"backend": kinds[entry.name]}) if entry.name in kinds else entry
            for entry in entries
        )
        self._read_at = time.monotonic()
