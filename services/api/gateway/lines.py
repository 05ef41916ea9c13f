"""The jobs whose clients wait here: what the routers tell of them reaches the right request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from loguru import logger

from services.api.gateway.outcomes import Cut
from shared.errors import StoreUnavailable
from shared.states import JobState
from shared.store.grants import CancelAsked, Ended, Grant, Grants, Told

_AWAY_S = 0.1
_ACCEPT_FIRST_S = 1.5
"""Half of a first lease: a grant that may be older is accepted before its backend is called."""
_BOOKKEEPING = frozenset({"client_gone", "lease_lost"})
"""Ends by our own slowness: the client and the backend know nothing of them."""


class Attempt:
    """One granted attempt. ``lost``: it is not ours any more, so nothing is recorded of it.

    ``spare``: its model had slots to spare when it started, so that nobody waits for this one.
    """

    __slots__ = ("_accepting", "accepted", "counts", "grant", "granted_at", "in_doubt", "lost", "spare")

    def __init__(self, grant: Grant, now: float, unread_since: float, *, spare: bool = False) -> None:
        self.grant = grant
        self.spare = spare
        self.counts = True
        self.granted_at = now
        self.in_doubt = now - unread_since > _ACCEPT_FIRST_S
        self.lost = False
        self.accepted = False
        self._accepting: asyncio.Future[None] | None = None

    async def wait_accepted(self) -> None:
        """Until the first renewal told whether it is still ours."""
        if not self.accepted and not self.lost:
            self._accepting = self._accepting or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._accepting)

    def answered(self, *, lost: bool) -> None:
        """What a renewal said."""
        self.accepted = True
        self.lost = self.lost or lost
        if self._accepting is not None and not self._accepting.done():
            self._accepting.set_result(None)


class JobEnded(Exception):
    """The job ended before it got an attempt of ours."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.detail)
        self.ended = ended


class Line:
    """One attached job. ``cut`` ends its request from outside."""

    def __init__(self, job_id: str, cut: Callable[[Cut], None]) -> None:
        self.job_id = job_id
        self.cut = cut
        self.attempt: Attempt | None = None
        self.ended: Ended | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def granted(self) -> Attempt:
        """The next attempt; raises ``JobEnded``."""
        while self.attempt is None:
            if self.ended is not None:
                raise JobEnded(self.ended)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.attempt

    def failed(self, attempt: Attempt) -> None:
        """This attempt is over and recorded; the next may have been granted already."""
        if self.attempt is attempt:
            self.attempt = None

    def grant(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._wake()

    def end(self, ended: Ended) -> None:
        """It ended elsewhere."""
        self.ended = ended
        if self.attempt is None:
            self._wake()
        elif ended.state is JobState.FAILED and ended.error_type in _BOOKKEEPING:
            self.attempt.answered(lost=True)
        else:
            self.attempt.answered(lost=True)
            self.cut(Cut.ENDED)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Switchboard:
    """Hands what the routers tell this api to the requests that it is about.

    ``accept`` is given every new attempt, ``orphan`` a grant whose client is gone already.
    """

    def __init__(
        self, accept: Callable[[Line, Attempt], None], orphan: Callable[[Grant], Awaitable[None]]
    ) -> None:
        self._accept = accept
        self._orphan = orphan
        self._lines: dict[str, Line] = {}
        self._orphans: set[asyncio.Future[None]] = set()

    def open(self, line: Line) -> None:
        self._lines[line.job_id] = line

    def close(self, line: Line) -> None:
        """Nobody waits for this job any more."""
        self._lines.pop(line.job_id, None)

    def started(self, line: Line, grant: Grant, asked_at: float, *, spare: bool) -> None:
        """A job that this api started itself; ``asked_at`` (monotonic): before the call that did it."""
        attempt = Attempt(grant, time.monotonic(), asked_at, spare=spare)
        self._accept(line, attempt)
        line.grant(attempt)

    async def run(self, grants: Grants) -> None:
        """Read until cancelled; while Redis is away nothing is missed, since the position is kept."""
        unread_since = time.monotonic()
        while True:
            try:
                told = await grants.read()
            except StoreUnavailable as error:
                logger.debug("reading the grants waits for Redis: {}", error)
                await asyncio.sleep(_AWAY_S)
                continue
            now = time.monotonic()
            for one in told:
                self._tell(one, now, unread_since)
            unread_since = now

    def _tell(self, told: Told, now: float, unread_since: float) -> None:
        line = self._lines.get(told.job_id)
        if line is None:
            if isinstance(told, Grant):
                self._give_back(told)
        elif isinstance(told, Grant):
            attempt = Attempt(told, now, unread_since)
            self._accept(line, attempt)
            line.grant(attempt)
        elif isinstance(told, Ended):
            line.end(told)
        elif isinstance(told, CancelAsked) and line.attempt is not None:
            line.cut(Cut.CANCELLED)

    def _give_back(self, grant: Grant) -> None:
        task = asyncio.ensure_future(self._orphan(grant))
        self._orphans.add(task)
        task.add_done_callback(self._orphans.discard)
