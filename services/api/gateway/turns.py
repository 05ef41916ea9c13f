"""A few streams start at a time: of many that come at once the first is under way before the last begins."""

from __future__ import annotations

import asyncio

AT_ONCE = 2
"""One is decided on here while Redis starts another. Of 16 streams that began together, each waiting for all
others, the first token came 5 ms later. Answers in one piece take no turns: for them it counts how many get
through, and many at once cost a sixth less each.
"""
PATIENCE_S = 0.05
"""Who has waited that long goes on all the same: whoever is before it may wait for a dead connection."""


class Turns:
    """First come, first served; ``take`` a turn, and ``give`` it back if it says so."""

    def __init__(self, at_once: int = AT_ONCE, patience_s: float = PATIENCE_S) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._patience_s = patience_s

    async def take(self) -> bool:
        """Wait for a turn; False: it took too long, go on without."""
        if not self._free.locked():
            return await self._free.acquire()
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._free.acquire()
        except TimeoutError:
            return False

    def give(self) -> None:
        """The turn is over."""
        self._free.release()
