"""The GPUs of this process's machine: readings when they are needed, levels, and a rolling window."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from loguru import logger

from shared.config import MemoryThresholds, ThermalThresholds
from shared.decision.levels import LevelState, next_levels
from shared.decision.memory import effective_utilization
from shared.decision.snapshot import Gpu
from shared.gpu.source import GpuReading, GpuSource, GpuUnavailable

WINDOW = 100
"""Samples kept per GPU (specification, historical metrics storage)."""
STALE_INTERVALS = 3
"""A reading older than so many intervals is stale (decision model, section 2)."""
PATIENCE_S = 1.0
"""How long a decision waits for a driver that hangs; after that the last levels hold."""
FIRST_PATIENCE_S = 5.0
"""The same before anything was ever read: without persistence mode a driver wakes its cards in seconds."""


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of one GPU and what came of it. ``ts_ms`` is the wall clock's, for people."""

    gpu: str
    ts_ms: int
    reading: GpuReading
    effective_utilization: float | None
    levels: LevelState


@dataclass(frozen=True, slots=True)
class _Latest:
    taken_s: float
    sample: GpuSample
    seq: int


class GpuWatch:
    """One reader of a source. ``pools_mb`` tells what awake vLLM servers hold on the GPU of an index."""

    def __init__(
        self,
        source: GpuSource,
        *,
        host: str,
        interval_s: float,
        memory: MemoryThresholds,
        thermal: ThermalThresholds,
        pools_mb: Callable[[int], Sequence[float | None]],
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._host = host
        self._on_demand_s = interval_s
        self._memory = memory
        self._thermal = thermal
        self._pools_mb = pools_mb
        self._clock = clock
        self._beats: list[float] = []
        self._reading: asyncio.Task[None] | None = None
        self._tried_s: float | None = None
        self._tried_once = False
        self._latest: dict[int, _Latest] = {}
        self._windows: dict[int, deque[GpuSample]] = {}
        self.uuids: dict[int, str | None] = {}
        """Every GPU ever seen, by index; one that is lost keeps its levels and its models."""
        self.trouble: str | None = None
        """Why the last attempt brought no readings, None if it did."""

    @property
    def samples(self) -> tuple[GpuSample, ...]:
        """The last ``WINDOW`` samples of each GPU, oldest first."""
        found = (sample for window in self._windows.values() for sample in window)
        return tuple(sorted(found, key=lambda sample: sample.ts_ms))

    def gpu_id(self, index: int) -> str:
        return f"{self._host}/{index}"

    def gpus(self) -> dict[str, Gpu]:
        """Every GPU ever read, by id; once readings stop only the last levels are left."""
        return {latest.sample.gpu: self._gpu(latest) for latest in self._latest.values()}

    async def refresh(self) -> None:
        """Read the GPUs unless that was tried within an interval; waits ``PATIENCE_S`` at most.

        Until a first attempt has ended, ``FIRST_PATIENCE_S``: deciding blindly is worth avoiding once.
        """
        due_s = STALE_INTERVALS * min(self._beats) if self._beats else self._on_demand_s
        task = self._under_way()
        if task is None and (self._tried_s is None or self._clock() - self._tried_s >= due_s):
            task = self._begin()
        if task is not None and self._tried_s is not None:
            patience_s = PATIENCE_S if self._tried_once else FIRST_PATIENCE_S
            await _join(task, patience_s - (self._clock() - self._tried_s))

    @asynccontextmanager
    async def beating(self, interval_s: float) -> AsyncIterator[None]:
        """Read the GPUs every ``interval_s`` in the background."""
        self._beats.append(interval_s)
        beat = asyncio.create_task(self._beat(interval_s), name="gpu-watch")
        try:
            yield
        finally:
            self._beats.remove(interval_s)
            beat.cancel()
            await _join(beat)
            # A call into the driver can't be cut short: left behind, its answer would find no event loop.
            if (task := self._under_way()) is not None:
                await _join(task, PATIENCE_S)

    async def aclose(self) -> None:
        """Let go of the driver."""
        if (task := self._under_way()) is not None:
            await _join(task, PATIENCE_S)
        await self._source.aclose()

    async def _beat(self, interval_s: float) -> None:
        due = time.monotonic()
        while True:
            await _join(self._under_way() or self._begin())
            due = max(due + interval_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    def _under_way(self) -> asyncio.Task[None] | None:
        task = self._reading
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            return None
        return task

    def _begin(self) -> asyncio.Task[None]:
        # A task of its own: a caller that gives up must not take the reading away from the others.
        self._tried_s = self._clock()
        self._reading = asyncio.create_task(self._read(self._tried_s), name="gpu-reading")
        return self._reading

    async def _read(self, taken_s: float) -> None:
        try:
            readings = await self._source.read()
        except GpuUnavailable as error:
            if str(error) != self.trouble:
                logger.warning("no GPU readings: {}", error)
            self.trouble = str(error)
            return
        finally:
            self._tried_once = True
        self.trouble = None
        # Before the levels: which vLLM pools are on a card depends on which cards there are.
        self.uuids |= {reading.index: reading.uuid for reading in readings}
        fresh = self._clock() - taken_s <= STALE_INTERVALS * self._interval_s
        for reading in readings:
            self._take(reading, taken_s, fresh)

    @property
    def _interval_s(self) -> float:
        return min(self._beats, default=self._on_demand_s)

    def _take(self, reading: GpuReading, taken_s: float, fresh: bool) -> None:
        before = self._latest.get(reading.index)
        old = before.sample.levels if before is not None else LevelState()
        share = effective_utilization(
            total_mb=reading.memory_total_mb,
            used_mb=reading.memory_used_mb,
            pools_mb=self._pools_mb(reading.index),
        )
        levels = next_levels(
            old,
            utilization=share,
            temperature_c=reading.temperature_c,
            thermal_slowdown=reading.thermal_slowdown or False,
            fresh=fresh,
            memory=self._memory,
            thermal=self._thermal,
        )
        if (levels.pressure, levels.full, levels.thermal) != (old.pressure, old.full, old.thermal):
            logger.info(
                "GPU {} memory pressure {}, thermal {}", reading.index, levels.pressure, levels.thermal
            )
        ts_ms = time.time_ns() // 1_000_000
        sample = GpuSample(self.gpu_id(reading.index), ts_ms, reading, share, levels)
        seq = before.seq + (levels != old) if before is not None else 1
        self._latest[reading.index] = _Latest(taken_s, sample, seq)
        self._windows.setdefault(reading.index, deque(maxlen=WINDOW)).append(sample)

    def _gpu(self, latest: _Latest) -> Gpu:
        sample, reading = latest.sample, latest.sample.reading
        levels = Gpu(
            id=sample.gpu,
            pressure=sample.levels.pressure,
            full=sample.levels.full,
            thermal=sample.levels.thermal,
            level_seq=latest.seq,
        )
        age_s = self._clock() - latest.taken_s
        if age_s > STALE_INTERVALS * self._interval_s:
            return replace(levels, level_age_ms=1000 * age_s)
        return replace(
            levels,
            effective_utilization=sample.effective_utilization,
            memory_total_mb=reading.memory_total_mb,
            memory_used_mb=reading.memory_used_mb,
            temperature_c=reading.temperature_c,
            power_draw_w=reading.power_draw_w,
            sample_age_ms=1000 * age_s,
        )


async def _join(task: asyncio.Task[None], timeout_s: float | None = None) -> None:
    """Wait for a task without cancelling it; raises what it raised, unless it was cancelled."""
    await asyncio.wait({task}, timeout=None if timeout_s is None else max(0.0, timeout_s))
    if task.done() and not task.cancelled():
        task.result()
