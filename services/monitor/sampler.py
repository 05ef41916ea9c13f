"""The GPU loop: reads, computes levels as their only writer, hands over for publishing. It never acts."""

from __future__ import annotations

import asyncio
import time

from loguru import logger

from services.monitor.host import HostView
from services.monitor.outbox import Outbox, Taken
from services.monitor.ownership import Ownership
from services.monitor.sample import level_change, level_fields, sample_fields, worse
from services.monitor.ticks import happened, ticks
from shared import log
from shared.config import Settings
from shared.decision.levels import LevelState, next_levels
from shared.decision.memory import effective_utilization
from shared.errors import StoreUnavailable
from shared.gpu.source import GpuReading, GpuSource, GpuUnavailable
from shared.store.fleet import FleetStore

STALE_INTERVALS = 3
"""A reading that took longer than so many intervals is stale: levels hold (decision model, section 2)."""
_RESTORE_S = 1.0
_FIRST_MODELS_S = 2.0


class GpuSampler:
    """Reads every GPU of one host every ``gpu.interval_s``."""

    def __init__(
        self, source: GpuSource, store: FleetStore, outbox: Outbox, host: HostView, settings: Settings
    ) -> None:
        self._source = source
        self._store = store
        self._outbox = outbox
        self._host = host
        self._settings = settings
        self._interval_s = settings.gpu.interval_s
        self._levels: dict[str, LevelState] = {}
        self._trouble: str | None = None
        self._warned: set[tuple[str, str]] = set()
        self._ownership = Ownership()

    async def run(self) -> None:
        """Sample until cancelled."""
        # Without the registrations a vLLM pool would look like memory pressure.
        await happened(self._host.models_tried, within_s=_FIRST_MODELS_S)
        async for _ in ticks(self._interval_s):
            await self._sample()

    async def _sample(self) -> None:
        started = time.monotonic()
        try:
            readings = await self._source.read()
        except GpuUnavailable as error:
            self._note_trouble(error)
            self._host.gpus_tried.set()
            return
        fresh = time.monotonic() - started <= STALE_INTERVALS * self._interval_s
        self._note_recovery()
        self._host.saw_gpus(readings)
        self._host.saw_owners(await self._ownership.of(self._host.gpu_pids, self._host.servers))
        self._host.gpus_tried.set()
        for reading in readings:
            await self._take(reading, started, fresh)

    async def _take(self, reading: GpuReading, at: float, fresh: bool) -> None:
        gpu = self._host.gpu_id(reading.index)
        old = self._levels.get(gpu) or await self._restore(gpu, reading.uuid)
        if old is None:
            return
        utilization, pools_mb = self._utilization(gpu, reading)
        new = next_levels(
            old,
            utilization=utilization,
            temperature_c=reading.temperature_c,
            thermal_slowdown=reading.thermal_slowdown or False,
            fresh=fresh,
            memory=self._settings.memory_thresholds,
            thermal=self._settings.thermal_thresholds,
        )
        change = level_change(gpu, old, new, reading, utilization, pools_mb)
        if change is not None:
            log.event(
                "level_change",
                "WARNING" if worse(old, new) else "INFO",
                change,
                gpu=gpu,
                memory_pressure=new.pressure.value,
                full=1 if new.full else None,
                thermal=new.thermal.value,
                use_percent=None if utilization is None else utilization * 100,
                temperature_c=reading.temperature_c,
            )
        self._levels[gpu] = new
        fields = sample_fields(
            reading,
            source=self._source,
            host=self._host.name,
            interval_s=self._interval_s,
            reserve_gb=self._reserve_gb(reading),
            utilization=utilization,
        )
        self._outbox.put(Taken(gpu, at, fields, level_fields(new, utilization, reading.uuid)))

    def _reserve_gb(self, reading: GpuReading) -> float:
        names = {str(reading.index), (reading.uuid or "").lower()}
        own = (one.reserve_gb for one in self._settings.gpus if str(one.id).lower() in names)
        return next((gb for gb in own if gb is not None), self._settings.gpu.reserve_gb)

    async def _restore(self, gpu: str, uuid: str | None) -> LevelState | None:
        """The levels that an earlier monitor left: a restart forgets nothing. None if Redis is away."""
        try:
            async with asyncio.timeout(_RESTORE_S):
                fields = await self._store.level(gpu)
        except (StoreUnavailable, TimeoutError) as error:
            logger.debug("GPU {}: reading dropped, its last levels can't be read: {}", gpu, error)
            return None
        if None not in (uuid, fields.get("uuid")) and uuid != fields["uuid"]:
            logger.warning("GPU {} is another card than the stored levels are of: starting anew", gpu)
            return LevelState()
        try:
            state = LevelState.from_fields(fields)
        except ValueError as error:
            logger.warning("GPU {}: the stored levels are unreadable ({}): starting anew", gpu, error)
            return LevelState()
        if fields:
            logger.info(
                "GPU {} memory pressure {}, thermal {} (as stored)", gpu, state.pressure, state.thermal
            )
        return state

    def _utilization(self, gpu: str, reading: GpuReading) -> tuple[float | None, float]:
        """The share that levels are computed on, rounded as it is published, and the MB of vLLM pools."""
        if not self._host.models_known:
            return None, 0.0
        pools = self._host.pools(gpu)
        for pool in pools:
            if pool.probed and pool.size_mb is None:
                self._warn_once(
                    gpu, f"memory pressure is unknown beside vLLM model {pool.model}: register its vram_gb"
                )
        share = effective_utilization(
            total_mb=reading.memory_total_mb,
            used_mb=reading.memory_used_mb,
            pools_mb=[pool.size_mb for pool in pools],
        )
        held_mb = sum(pool.size_mb or 0.0 for pool in pools)
        return (None if share is None else round(share, 6)), held_mb

    def _note_trouble(self, error: GpuUnavailable) -> None:
        if str(error) != self._trouble:
            logger.warning("no GPU readings, the last levels hold: {}", error)
        self._trouble = str(error)

    def _note_recovery(self) -> None:
        if self._trouble is not None:
            logger.info("GPU readings are back")
        self._trouble = None

    def _warn_once(self, gpu: str, what: str) -> None:
        if (gpu, what) not in self._warned:
            self._warned.add((gpu, what))
            logger.warning("GPU {}: {}", gpu, what)
