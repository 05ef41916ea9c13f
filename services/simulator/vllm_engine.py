"""The engine of the simulated vLLM: a line of requests, a KV cache in blocks, sleep, pause and death."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum


class HoldMode(StrEnum):
    """What ``/sleep`` and ``/pause`` do with requests inside."""

    ABORT = "abort"
    WAIT = "wait"
    KEEP = "keep"


class Aborted(Exception):
    """The engine ended this request (``finish_reason: abort``)."""


class EngineDied(Exception):
    """The engine is gone with everything in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server was started with; ``max_queued`` bounds all requests inside (None: no bound).

    One block is never handed out (real one, seen: 24 blocks, of which 23 can be used).
    """

    max_num_seqs: int
    num_blocks: int
    block_size: int
    max_queued: int | None = None

    @property
    def usable_blocks(self) -> int:
        return self.num_blocks - 1

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What ``/metrics`` tells of the moment; ``kv_use`` is 0..1."""

    running: int
    waiting: int
    kv_use: float


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine; ``tokens`` are those it must hold when it next runs."""

    tokens: int
    blocks: int = 0
    runs: bool = False
    preemptions: int = 0
    end: type[Aborted | EngineDied] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """Runs requests in the order they came, as many as ``max_num_seqs`` and the KV blocks allow.

    A request that grows where no block is free takes those of the last one that began, which goes back to the
    head of the line (a preemption). A held engine starts nothing new, a frozen one does nothing at all, and
    its gauges stay as they were.
    """

    def __init__(self, limits: Limits, running_changed: Callable[[int], None]) -> None:
        self.limits = limits
        self.preemptions = 0
        self.peak_running = 0
        self.sleep_level: int | None = None
        self.dead = False
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._held = False
        self._frozen: Gauges | None = None
        self._running_changed = running_changed
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether admission control lets no further request in."""
        bound = self.limits.max_queued
        return bound is not None and self.running + self.waiting >= bound

    @property
    def paused(self) -> bool:
        """Whether its scheduler is held; a sleeper's is, too."""
        return self._held

    @property
    def gauges(self) -> Gauges:
        return self._frozen or Gauges(
            self.running, self.waiting, self._used_blocks / max(1, self.limits.usable_blocks)
        )

    @contextmanager
    def sequence(self, prompt_tokens: int) -> Iterator[Sequence]:
        """A place in the line for the time of the block."""
        entry = Sequence(prompt_tokens)
        self._waiting.append(entry)
        self._schedule()
        try:
            yield entry
        finally:
            self._remove(entry)
            self._schedule()

    async def turn(self, entry: Sequence, tokens: int) -> None:
        """Wait until this request runs and may hold so many tokens; raises ``Aborted`` or ``EngineDied``."""
        while not self._takes(entry, tokens):
            entry.changed.clear()
            await entry.changed.wait()

    async def nap(self, entry: Sequence, seconds: float) -> None:
        """Compute for so long; raises ``Aborted`` or ``EngineDied`` as soon as that happens."""
        limit = asyncio.get_running_loop().time() + seconds
        while entry.end is None:
            entry.changed.clear()
            try:
                async with asyncio.timeout_at(limit):
                    await entry.changed.wait()
            except TimeoutError:
                return
        raise entry.end

    async def hold(self, mode: HoldMode) -> None:
        """Start nothing new; with ``wait`` what runs ends first, with ``keep`` it stops where it is."""
        self._held = True
        if mode is HoldMode.ABORT:
            self._end_all(Aborted)
        elif mode is HoldMode.WAIT and self._frozen is None:
            await self._idle.wait()
        if self._held and self._frozen is None:
            self._frozen = self.gauges

    def release(self) -> None:
        """Go on."""
        self._held, self._frozen, self.sleep_level = False, None, None
        self._schedule()
        for entry in self._running:
            entry.changed.set()

    def die(self) -> None:
        """End with everything inside."""
        self.dead = True
        self._end_all(EngineDied)

    @property
    def _used_blocks(self) -> int:
        return sum(entry.blocks for entry in self._running)

    @property
    def _free_blocks(self) -> int:
        return self.limits.usable_blocks - self._used_blocks

    def _takes(self, entry: Sequence, tokens: int) -> bool:
        if entry.end is not None:
            raise entry.end
        if self._frozen is not None or not entry.runs:
            return False
        entry.tokens = tokens
        missing = self.limits.blocks(tokens) - entry.blocks
        while self._free_blocks < missing:
            last = self._running[-1]
            self._preempt(last)
            if last is entry:
                self._schedule()
                return False
        entry.blocks += max(0, missing)
        return True

    def _preempt(self, entry: Sequence) -> None:
        self.preemptions += 1
        entry.preemptions += 1
        self._stop(entry)
        self._waiting.appendleft(entry)

    def _schedule(self) -> None:
        while self._waiting and not (self._held or self.dead) and self.running < self.limits.max_num_seqs:
            first = self._waiting[0]
            if self.limits.blocks(first.tokens) > self._free_blocks:
                break
            self._waiting.popleft()
            first.runs, first.blocks = True, self.limits.blocks(first.tokens)
            self._running.append(first)
            first.changed.set()
        self._count()

    def _stop(self, entry: Sequence) -> None:
        self._running.remove(entry)
        entry.runs, entry.blocks = False, 0

    def _remove(self, entry: Sequence) -> None:
        if entry.runs:
            self._stop(entry)
        elif entry in self._waiting:
            self._waiting.remove(entry)
        self._count()

    def _end_all(self, end: type[Aborted | EngineDied]) -> None:
        self._frozen = None
        for entry in [*self._running, *self._waiting]:
            self._remove(entry)
            entry.end = end
            entry.changed.set()

    def _count(self) -> None:
        self.peak_running = max(self.peak_running, self.running)
        self._running_changed(self.running)
        if self._running:
            self._idle.clear()
        else:
            self._idle.set()
