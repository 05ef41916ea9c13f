"""Following what others write: cancels reach the dispatcher, what may free a job wakes the scheduler."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from loguru import logger

from services.router.dispatcher import Dispatcher
from services.router.wakeup import Wakeup
from shared.errors import StoreUnavailable
from shared.keys import Keys
from shared.states import FINAL_EVENTS, JobEvent
from shared.store.records import StreamEntry
from shared.store.streams import Follower

_AWAY_S = 0.5
_GATHER_S = 0.003
_LEISURE_S = 0.01
"""After what changed nothing for us."""
_SAMPLE_S = 0.05
"""Samples come from many GPUs and backends at once: one pass is enough for all of them."""
_FREED_MOST_S = 0.02
"""Several routers hear of a freed slot: the one that freed it goes first, the others a moment later."""
_FREEING = frozenset({*FINAL_EVENTS, JobEvent.RETRIED, JobEvent.REQUEUED})


class Following:
    """One plain reader over wakes, samples and control; every router sees every entry."""

    def __init__(
        self,
        follower: Follower,
        keys: Keys,
        dispatcher: Dispatcher,
        *,
        wake: Wakeup,
        due: Wakeup,
        router: str,
    ) -> None:
        self._follower = follower
        self._keys = keys
        self._dispatcher = dispatcher
        self._wake = wake
        self._due = due
        self._router = router

    async def run(self) -> None:
        """Read until cancelled; while Redis is away nothing is missed, since positions are kept."""
        while True:
            try:
                await self._follower.settle()
                while True:
                    entries = await self._follower.read()
                    mattered = [self._heed(stream, entry) for stream, entry in entries]
                    # A job writes several events at once: read them together.
                    await asyncio.sleep(_GATHER_S if any(mattered) else _LEISURE_S)
            except StoreUnavailable as error:
                logger.debug("following waits for Redis: {}", error)
                await asyncio.sleep(_AWAY_S)
                self._wake.ring()

    def _heed(self, stream: str, entry: StreamEntry) -> bool:
        """Act on an entry; whether it was of any consequence."""
        if stream != self._keys.wakes:
            self._wake.ring(0.0 if stream == self._keys.control else _SAMPLE_S)
            return True
        kind = entry.fields.get("type")
        if kind == JobEvent.CANCEL_REQUESTED:
            self._dispatcher.check_lease(entry.fields.get("job_id", ""))
            return True
        return kind in _FREEING and self._heed_freed(entry.fields)

    def _heed_freed(self, fields: Mapping[str, str]) -> bool:
        delay_ms = fields.get("delay_ms", "")
        if "attached_to" in fields and delay_ms.isdecimal():
            # Our own dispatcher rings for what it delays; an api that delays a job has no alarm to ring.
            self._due.ring(int(delay_ms) / 1000)
        if fields.get("waiting") == "0":
            return False  # nobody waits for what it left; who comes later finds it
        if fields.get("router") != self._router:
            self._wake.ring(random.uniform(0.0, _FREED_MOST_S))
        elif "attached_to" in fields or fields.get("type") == JobEvent.REQUEUED:
            # What our own dispatcher ends wakes us by itself; what an api ends for us does not, nor what was
            # given back before it ran.
            self._wake.ring()
        return True


def positions(keys: Keys) -> dict[str, str]:
    """What a router follows, from now on."""
    return dict.fromkeys((keys.wakes, keys.gpu_samples, keys.backend_samples, keys.control), "$")
