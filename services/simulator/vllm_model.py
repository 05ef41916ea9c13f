"""One simulated model as vLLM serves it: its engine, its pool of memory, its measurements."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from services.simulator.card import MB_PER_GB, Card
from services.simulator.faults import FaultKind
from services.simulator.state import ServedModel
from services.simulator.vllm_engine import Engine, HoldMode, Limits
from services.simulator.vllm_metrics import Measurements
from shared.config import SimulatorSettings
from shared.registry import Registration
from shared.states import Residence

_MAX_NUM_SEQS = 256
_BLOCK_TOKENS = 16
"""vLLM's defaults on a GPU."""
_KV_SHARE = 0.5
_KV_TOKENS_PER_GB = 8192
"""Half of the pool as KV cache, at 128 KiB a token: an 8B model with 8 KV heads in 16 bits."""
_ASLEEP_MB = 1024.0
"""What is left on the card of a sleeper; from memory of vLLM's own log lines, not measured."""


class VllmModel(ServedModel):
    """It holds its whole pool (``vram_gb``) from start to end, idle or not, unless it sleeps."""

    def __init__(self, registration: Registration, settings: SimulatorSettings, card: Card) -> None:
        super().__init__(registration, settings, card)
        self.dev_mode = True
        """Whether it has the endpoints of ``VLLM_SERVER_DEV_MODE=1``: sleep, pause and their like."""
        self.inside = 0
        """Completions between their arrival and the end of their answer (``/load``)."""
        self.died = asyncio.Event()
        self.engine = Engine(self._limits(), self._running_changed)
        self.measurements = Measurements(self.context_tokens)

    @property
    def residence(self) -> Residence:
        loaded = super().residence
        if loaded is not Residence.RESIDENT:
            return loaded
        if self.engine.dead:
            return Residence.FAILED
        return Residence.DRAINING if self.engine.paused else Residence.RESIDENT

    @property
    def slots(self) -> int:
        return self.engine.limits.max_num_seqs

    @property
    def running(self) -> int:
        return self.engine.running

    @property
    def deferred(self) -> int:
        return self.engine.waiting

    @property
    def peak_running(self) -> int:
        return self.engine.peak_running

    def begin_load(self, *, waking: bool = False) -> None:
        """Start a new server on the card."""
        self.engine = Engine(self.engine.limits, self._running_changed)
        self.measurements = Measurements(self.context_tokens)
        self.died.clear()
        super().begin_load(waking=waking)

    def kill_engine(self) -> None:
        """Let the engine die now, as when the kernel kills it; the fault that asked for it is done with."""
        if self.fault is not None and self.fault.kind is FaultKind.ENGINE_DEATH:
            self.set_fault(None)
        self.engine.die()
        self.died.set()

    async def sleep(self, level: int, mode: HoldMode) -> None:
        """Hold the engine and (from level 1 on) give its memory back; nothing wakes it but ``wake``."""
        await self.engine.hold(mode)
        if not self.engine.paused:
            return  # woken while it waited for what ran
        self.engine.sleep_level = level
        if level >= 1:
            self._asleep = True
            left_mb = min(_ASLEEP_MB, self.vram_gb * MB_PER_GB)
            self._card.occupy(self.registration.name, left_mb, pool=True)

    def wake(self) -> None:
        """Take the memory again and go on, also after a pause."""
        self._asleep = False
        self._occupy()
        self.engine.release()

    def limit(self, *, kv_blocks: int | None = None, max_queued: int | None = None) -> None:
        """Change the size of the KV cache (never below one whole context), or how many may be inside."""
        limits = self.engine.limits
        if kv_blocks is not None:
            limits = replace(limits, num_blocks=max(kv_blocks, self._least_blocks(limits.block_size)))
        if max_queued is not None:
            limits = replace(limits, max_queued=max_queued)
        self.engine.limits = limits

    def _occupy(self) -> None:
        self._card.occupy(self.registration.name, self.vram_gb * MB_PER_GB, pool=True)

    def _limits(self) -> Limits:
        blocks = int(self.vram_gb * _KV_SHARE * _KV_TOKENS_PER_GB) // _BLOCK_TOKENS
        return Limits(
            max_num_seqs=self.registration.slots or _MAX_NUM_SEQS,
            num_blocks=max(blocks, self._least_blocks(_BLOCK_TOKENS)),
            block_size=_BLOCK_TOKENS,
        )

    def _least_blocks(self, block_size: int) -> int:
        """vLLM refuses to start where one request of full length would not fit."""
        return -(-self.context_tokens // block_size) + 1
