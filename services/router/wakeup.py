"""An alarm that many may set and one waits for: the earliest time asked for counts."""

from __future__ import annotations

import asyncio
import time


class Wakeup:
    """Wakes one waiter at the earliest of the times that were asked for since it last woke."""

    def __init__(self) -> None:
        self._due: float | None = None
        self._changed = asyncio.Event()

    def ring(self, after_s: float = 0.0) -> None:
        """Ask for a wake-up ``after_s`` seconds from now; a later one than already asked for is absorbed."""
        due = time.monotonic() + after_s
        if self._due is None or due < self._due:
            self._due = due
            self._changed.set()

    async def wait(self, at_most_s: float) -> None:
        """Return when the alarm is due, at the latest after ``at_most_s`` seconds."""
        limit = time.monotonic() + at_most_s
        while True:
            self._changed.clear()
            until = limit if self._due is None else min(limit, self._due)
            remaining = until - time.monotonic()
            if remaining <= 0:
                self._due = None
                return
            try:
                async with asyncio.timeout(remaining):
                    await self._changed.wait()
            except TimeoutError:
                self._due = None
                return
