"""Readings on their way to Redis: the newest of each GPU first, what waited meanwhile as history behind."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from loguru import logger
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_never,
    wait_random_exponential,
)

from shared.errors import StoreUnavailable
from shared.store.fleet import FleetStore, GpuSample

KEPT = 100
"""Readings of one GPU that wait for Redis; older ones are dropped."""
_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """A reading with its levels, ready to be published; ``at`` is when it was taken (monotonic, s)."""

    gpu: str
    at: float
    fields: Mapping[str, str]
    level: Mapping[str, str]


@dataclass(slots=True)
class _Lane:
    """Of one GPU: the newest reading, if not yet published, and those that it overtook, oldest first."""

    newest: Taken | None = None
    waiting: deque[Taken] = field(default_factory=lambda: deque(maxlen=KEPT - 1))

    def put(self, reading: Taken) -> None:
        if self.newest is not None:
            self.waiting.append(self.newest)
        self.newest = reading

    def remove(self, reading: Taken) -> None:
        if self.newest is reading:
            self.newest = None
        elif reading in self.waiting:
            self.waiting.remove(reading)


class Outbox:
    """Publishes what ``put`` gets for as long as ``run`` runs.

    The newest goes first: replaying a backlog in order would show routers levels of long ago one by one. What
    comes behind it is older than the stored sample, so the script answers LATE and touches no level.
    """

    def __init__(self, store: FleetStore, boot: str, *, ttl_s: float) -> None:
        self._store = store
        self._boot = boot
        self._ttl_s = ttl_s
        self._lanes: dict[str, _Lane] = {}
        self._filled = asyncio.Event()
        self._seq = 0
        self._away = False

    def put(self, reading: Taken) -> None:
        """Queue a reading; never blocks."""
        self._lanes.setdefault(reading.gpu, _Lane()).put(reading)
        self._filled.set()

    async def run(self) -> None:
        """Publish until cancelled; Redis being away is waited out."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(_RETRY_FIRST_S, max=_RETRY_MOST_S),
            stop=stop_never,  # cancellation ends it
            before_sleep=self._note_failure,
        )
        while True:
            await self._filled.wait()
            await retrying(self._publish_next)

    async def _publish_next(self) -> None:
        reading = self._next()
        if reading is None:
            self._filled.clear()
            return
        # A fresh number for each try: with an old one a reading that was overtaken would count as a replay.
        self._seq += 1
        age_ms = round((time.monotonic() - reading.at) * 1000)
        await self._store.publish_gpu(
            GpuSample(reading.gpu, self._boot, self._seq, age_ms, reading.fields, reading.level),
            ttl_s=self._ttl_s,
        )
        self._lanes[reading.gpu].remove(reading)
        if self._away:
            self._away = False
            waiting = sum(len(lane.waiting) for lane in self._lanes.values())
            logger.info("Redis is back: {} GPU readings that waited follow as history", waiting)

    def _next(self) -> Taken | None:
        for lane in self._lanes.values():
            if lane.newest is not None:
                return lane.newest
        return next((lane.waiting[0] for lane in self._lanes.values() if lane.waiting), None)

    def _note_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        first = not self._away
        self._away = True
        logger.log(
            "WARNING" if first else "DEBUG",
            "Redis is away ({}): the last {} GPU readings are kept, try {}",
            error,
            KEPT,
            state.attempt_number,
        )
