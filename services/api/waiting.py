"""One follower of the job events per process, which wakes whoever waits for a job."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from loguru import logger

from shared.errors import StoreUnavailable
from shared.states import FINAL_EVENTS, FINAL_STATES
from shared.store.records import JobRecord, StreamEntry
from shared.store.streams import Follower

POLL_S = 1.0
"""How often a waiter looks for itself: an event can be lost, with the data of a Redis for one."""
_AWAY_S = 0.25
_LINGER_S = 1.0
_MOST_UNREAD = 1000
"""Events kept for a client that does not read them; a job seldom has more than ten."""


class Subscription:
    """The events of one job, from the moment of subscribing on."""

    def __init__(self) -> None:
        self._entries: deque[StreamEntry] = deque()
        self._ring = asyncio.Event()
        self.overrun = False
        self.closed = False

    async def next(self, timeout_s: float) -> StreamEntry | None:
        """The next event; None after ``timeout_s``, or once nothing more will come (``closed``)."""
        if not self._entries and not self.closed:
            self._ring.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._ring.wait()
        return self._entries.popleft() if self._entries else None

    def put(self, entry: StreamEntry) -> None:
        if len(self._entries) >= _MOST_UNREAD:
            self.overrun = True
            self.close()
        if not self.closed:
            self._entries.append(entry)
            self._ring.set()

    def close(self) -> None:
        self.closed = True
        self._ring.set()


class JobFeed:
    """Hands the events of each job to those who subscribed to it."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._subscriptions: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._closed = False
        self._wanted = asyncio.Event()
        self._following = asyncio.Event()
        self._last_wanted = 0.0

    @property
    def subscribers(self) -> int:
        return sum(map(len, self._subscriptions.values()))

    @property
    def closed(self) -> bool:
        """Whether the process stops: nobody hears of any job any more."""
        return self._closed

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[Subscription]:
        subscription = Subscription()
        if self._closed:
            subscription.close()
        self._subscriptions[job_id].add(subscription)
        self._wanted.set()
        try:
            yield subscription
        finally:
            remaining = self._subscriptions[job_id]
            remaining.discard(subscription)
            if not remaining:
                del self._subscriptions[job_id]
            if not self._subscriptions:
                self._last_wanted = time.monotonic()
                self._wanted.clear()

    async def follows(self) -> None:
        """Return once all that happens from now on reaches those who have subscribed.

        Or after a second: while Redis is away they go by what they read for themselves.
        """
        if not self._following.is_set() and not self._closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._following.wait()

    def close(self) -> None:
        """End all waiting, so that the process can stop; who waited gets the job as it is."""
        self._closed = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.close()

    async def run(self) -> None:
        """Follow until cancelled, while somebody wants to know; a Redis away is waited out without a miss."""
        while True:
            await self._wanted.wait()
            await self._insist(self._follower.skip)
            self._following.set()
            # Reading on for a moment spares the next one who waits for a job the beginning.
            while self._wanted.is_set() or time.monotonic() - self._last_wanted < _LINGER_S:
                await self._insist(self._pass_on)
            self._following.clear()

    async def _pass_on(self) -> None:
        for _, entry in await self._follower.read():
            for subscription in self._subscriptions.get(entry.fields.get("job_id", ""), ()):
                subscription.put(entry)

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except StoreUnavailable as error:
                logger.debug("following the job events waits for Redis: {}", error)
                await asyncio.sleep(_AWAY_S)
            else:
                return


async def wait_for_end(
    get: Callable[[str], Awaitable[JobRecord | None]],
    feed: JobFeed,
    record: JobRecord,
    *,
    within_s: float,
    client_left: Callable[[], Awaitable[bool]],
) -> JobRecord | None:
    """The job once it has ended, or as it was last seen when the time is up; None if it is not kept any more.

    An absent Redis is waited out: the job is accepted, and an error would make its client send it again.
    """
    deadline = time.monotonic() + within_s
    with feed.subscribe(record.job_id) as events:
        await feed.follows()
        while True:
            with suppress(StoreUnavailable):
                found = await get(record.job_id)
                if found is None:
                    return None
                record = found
            if record.state in FINAL_STATES or events.closed or await client_left():
                return record
            until = min(deadline, time.monotonic() + POLL_S)
            while (remaining := until - time.monotonic()) > 0:
                entry = await events.next(remaining)
                if events.closed or (entry is not None and entry.fields.get("type") in FINAL_EVENTS):
                    break
            if time.monotonic() >= deadline:
                return record
