"""One keeper of the leases of all that a process runs: a call to Redis for all of them at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from loguru import logger

from shared.errors import StoreUnavailable
from shared.store.grants import Grant
from shared.store.jobs import JobStore
from shared.store.records import RenewOutcome

RENEWALS_PER_LEASE = 4
"""Four chances before the lease runs out (docket renews as often; one chance was streaq's weak spot)."""
ACCEPT_WITHIN_S = 0.25
"""A first lease lasts seconds, and most answers less than this: waiting a moment spares them the call."""
_AWAY_S = 0.1
_ANSWER_S = 2.0

Told = Callable[[RenewOutcome], None]


class Leased(Protocol):
    """What is kept: one attempt, compared by identity."""

    @property
    def grant(self) -> Grant: ...


Held = TypeVar("Held", bound=Leased)


class _Kept:
    __slots__ = ("lapses_at", "told")

    def __init__(self, told: Told, lapses_at: float) -> None:
        self.told = told
        self.lapses_at = lapses_at


class Leases(Generic[Held]):
    """Renews what it keeps, and accepts what is new in a moment, in one call for all that came meanwhile.

    ``router``: who runs it all, None for an api. With ``gives_up`` an attempt that could not be renewed for a
    whole lease is told ``STALE`` even if Redis did not say so.
    """

    def __init__(
        self, jobs: JobStore, lease_s: float, *, router: str | None = None, gives_up: bool = False
    ) -> None:
        self._jobs = jobs
        self._lease_s = lease_s
        self._router = router
        self._gives_up = gives_up
        self._every_s = lease_s / RENEWALS_PER_LEASE
        self._kept: dict[Held, _Kept] = {}
        self._soon: list[Held] = []
        self._ring = asyncio.Event()
        self._due = float("inf")

    @property
    def kept(self) -> int:
        return len(self._kept)

    def keep(
        self, attempt: Held, told: Told, *, within_s: float | None = None, lease_s: float | None = None
    ) -> None:
        """Renew its lease until it is dropped, first ``within_s`` from now (None: with all others).

        ``told`` hears what every renewal says; ``lease_s``: of its lease as it is now, if that is another.
        """
        self._kept[attempt] = _Kept(told, time.monotonic() + (lease_s or self._lease_s))
        if within_s is not None:
            self._renew_within(attempt, within_s)

    def renew_now(self, attempt: Held) -> None:
        """Ask ahead of time whether it is still ours and wanted."""
        self._renew_within(attempt, 0.0)

    def drop(self, attempt: Held) -> None:
        """It is over."""
        self._kept.pop(attempt, None)

    async def run(self) -> None:
        """Until cancelled."""
        all_due = self._due = time.monotonic() + self._every_s
        while True:
            await self._wait()
            everything = time.monotonic() >= all_due
            asked = list(self._kept) if everything else [one for one in self._soon if one in self._kept]
            self._soon.clear()
            self._due = all_due
            try:
                await self._renew(asked)
            except (StoreUnavailable, TimeoutError) as error:
                logger.debug("renewing {} leases waits for Redis: {}", len(asked), error or "no answer")
                self._drop_lapsed()
                self._soon += [one for one in asked if one in self._kept]
                self._due = time.monotonic() + _AWAY_S
                continue
            if everything:
                all_due = time.monotonic() + self._every_s
                self._due = min(all_due, self._due) if self._soon else all_due

    def _renew_within(self, attempt: Held, within_s: float) -> None:
        self._soon.append(attempt)
        due = time.monotonic() + within_s
        if due < self._due:
            self._due = due
            self._ring.set()

    async def _wait(self) -> None:
        """Until something is due; what comes meanwhile can make that earlier."""
        while (left_s := self._due - time.monotonic()) > 0:
            self._ring.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._ring.wait()

    async def _renew(self, attempts: list[Held]) -> None:
        if not attempts:
            return
        asked_at = time.monotonic()
        pairs = [(one.grant.job_id, one.grant.attempt) for one in attempts]
        # One call at a time: whatever is new waits behind one that hangs.
        async with asyncio.timeout(min(self._every_s, _ANSWER_S)):
            outcomes = await self._jobs.renew_all(pairs, round(self._lease_s * 1000), self._router)
        for attempt, outcome in zip(attempts, outcomes, strict=True):
            kept = self._kept.get(attempt)
            if kept is None:
                continue
            kept.lapses_at = asked_at + self._lease_s
            if outcome is RenewOutcome.STALE:
                self.drop(attempt)
            kept.told(outcome)

    def _drop_lapsed(self) -> None:
        if not self._gives_up:
            return
        now = time.monotonic()
        for attempt, kept in [*self._kept.items()]:
            if now >= kept.lapses_at:
                self.drop(attempt)
                kept.told(RenewOutcome.STALE)
