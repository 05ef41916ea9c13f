"""The slots of one llama.cpp server: so many requests compute, the others wait in line."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Slot:
    """One slot and what it last did."""

    id: int
    task: int | None = None
    busy: bool = False
    prompt_tokens: int = 0
    decoded: int = 0
    max_tokens: int = 0
    stream: bool = False


class SlotPool:
    """Hands slots to requests in the order they came; a request that leaves gives its place up."""

    def __init__(self, count: int, changed: Callable[[int], None]) -> None:
        """``changed`` is told the number of running requests whenever it changes."""
        self.slots = tuple(Slot(number) for number in range(count))
        self.peak_running = 0
        self._free = deque(self.slots)
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._changed = changed

    @property
    def running(self) -> int:
        return len(self.slots) - len(self._free)

    @property
    def deferred(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """A slot for the time of the block, waited for in line."""
        slot = await self._take()
        try:
            yield slot
        finally:
            slot.busy = False
            self._give(slot)

    async def _take(self) -> Slot:
        if self._free:
            slot = self._free.popleft()
        else:
            turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                slot = await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give(turn.result())  # its turn came in the moment it left
                elif turn in self._waiting:
                    self._waiting.remove(turn)
                raise
        slot.busy = True
        self.peak_running = max(self.peak_running, self.running)
        self._changed(self.running)
        return slot

    def _give(self, slot: Slot) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self._free.append(slot)
        self._changed(self.running)
