"""One keeper of the leases of all that this api runs: a call to Redis for all of them at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from loguru import logger

from services.api.gateway.lines import Attempt, Line
from services.api.gateway.outcomes import Cut
from shared.errors import StoreUnavailable
from shared.store.jobs import JobStore
from shared.store.records import RenewOutcome

_RENEWALS_PER_LEASE = 4
_AWAY_S = 0.1
_ACCEPT_WITHIN_S = 0.25
"""A first lease lasts seconds, and most answers less than this: waiting a moment spares them the call."""


class Leases:
    """Accepts new attempts in a moment, in one call for all that came meanwhile, and renews the rest."""

    def __init__(self, jobs: JobStore, lease_s: float) -> None:
        self._jobs = jobs
        self._lease_ms = round(lease_s * 1000)
        self._every_s = lease_s / _RENEWALS_PER_LEASE
        self._kept: dict[Attempt, Line] = {}
        self._new: list[Attempt] = []
        self._ring = asyncio.Event()
        self._due = float("inf")

    @property
    def kept(self) -> int:
        return len(self._kept)

    def keep(self, line: Line, attempt: Attempt) -> None:
        """Accept this attempt (at once where it may be late), and keep its lease until it is dropped."""
        self._kept[attempt] = line
        self._new.append(attempt)
        within_s = 0.0 if attempt.in_doubt else _ACCEPT_WITHIN_S
        self._due = min(self._due, time.monotonic() + within_s)
        if attempt.in_doubt or len(self._new) == 1:
            self._ring.set()

    def drop(self, attempt: Attempt) -> None:
        self._kept.pop(attempt, None)

    async def run(self) -> None:
        """Until cancelled."""
        all_due = self._due = time.monotonic() + self._every_s
        while True:
            await self._wait()
            everything = time.monotonic() >= all_due
            asked = list(self._kept) if everything else [one for one in self._new if one in self._kept]
            self._new.clear()
            self._due = all_due
            try:
                await self._renew(asked)
            except StoreUnavailable as error:
                logger.debug("renewing {} leases waits for Redis: {}", len(asked), error)
                self._new += [one for one in asked if one in self._kept]
                self._due = time.monotonic() + _AWAY_S
                continue
            if everything:
                all_due = time.monotonic() + self._every_s
                self._due = min(all_due, self._due) if self._new else all_due

    async def _wait(self) -> None:
        """Until something is due; what comes meanwhile can make that earlier."""
        while (left_s := self._due - time.monotonic()) > 0:
            self._ring.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._ring.wait()

    async def _renew(self, attempts: list[Attempt]) -> None:
        if not attempts:
            return
        pairs = [(one.grant.job_id, one.grant.attempt) for one in attempts]
        outcomes = await self._jobs.renew_all(pairs, self._lease_ms)
        for attempt, outcome in zip(attempts, outcomes, strict=True):
            line = self._kept.get(attempt)
            attempt.answered(lost=outcome is RenewOutcome.STALE and line is not None)
            if line is None:
                continue
            if outcome is RenewOutcome.STALE:
                self.drop(attempt)
            elif outcome is RenewOutcome.CANCEL:
                line.cut(Cut.CANCELLED)
