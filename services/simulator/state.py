"""What one simulated model is doing: loaded or not, its speed, its fault, its counters."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from services.simulator.card import MB_PER_GB, Card
from services.simulator.faults import Fault, FaultKind
from services.simulator.slots import SlotPool
from shared.config import SimulatorSettings
from shared.registry import Registration
from shared.states import Residence

_DEFAULT_SLOTS = 4
_DEFAULT_CONTEXT_TOKENS = 4096
_DEFAULT_VRAM_GB = 4.0
_PREFILL_SPEEDUP = 20.0
"""Prompt tokens are read so many times faster than tokens are written: about what one card does."""
_SLOW_FACTOR = 10.0
_FIXED = ("backend", "slots", "context_tokens", "upstream_name", "vram_gb")
"""What a server is started with."""


def default_tokens_per_second(vram_gb: float) -> float:
    """Output speed by size, as the specification assumes it for models that were never measured."""
    if vram_gb < 2:
        return 200.0
    if vram_gb < 8:
        return 150.0
    return 100.0 if vram_gb < 15 else 50.0


@dataclass(slots=True)
class Counters:
    """Since the start: valid completions ``received``, those fully ``served``, those ``struck`` by a fault,
    and those ``abandoned`` because their connection was cut, by either side.
    """

    received: int = 0
    served: int = 0
    struck: int = 0
    abandoned: int = 0
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    output_tokens: int = 0
    output_s: float = 0.0
    decodes: int = 0


class ServedModel(ABC):
    """One simulated model on the card, without its port: what every look-alike server keeps of it."""

    def __init__(self, registration: Registration, settings: SimulatorSettings, card: Card) -> None:
        self.registration = registration
        self.name = registration.upstream_name or registration.name
        self.vram_gb = _DEFAULT_VRAM_GB if registration.vram_gb is None else registration.vram_gb
        self.context_tokens = registration.context_tokens or _DEFAULT_CONTEXT_TOKENS
        self.tokens_per_second = registration.tokens_per_second or default_tokens_per_second(self.vram_gb)
        self.load_s = settings.load_s
        self.counters = Counters()
        self.fault: Fault | None = None
        self.healed = asyncio.Event()
        self._strikes_left: int | None = None
        self.speedup = settings.speedup
        self._card = card
        self._loaded = False
        self._asleep = False
        self._waking = False
        self._ready_at = 0.0

    @property
    def residence(self) -> Residence:
        if not self._loaded:
            return Residence.UNLOADED
        if self._asleep:
            return Residence.SLEEPING
        return Residence.LOADING if time.monotonic() < self._ready_at else Residence.RESIDENT

    @property
    @abstractmethod
    def slots(self) -> int:
        """The most requests that compute at once."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Requests that compute now."""

    @property
    @abstractmethod
    def deferred(self) -> int:
        """Requests that wait in line."""

    @property
    @abstractmethod
    def peak_running(self) -> int:
        """The most that ever computed at once."""

    @property
    def loading_s(self) -> float:
        """Seconds until it is loaded, 0 when it is."""
        return max(0.0, self._ready_at - time.monotonic())

    def begin_load(self, *, waking: bool = False) -> None:
        """Take the memory; ready to serve after ``load_s``."""
        self._loaded, self._asleep, self._waking = True, False, waking
        self._ready_at = time.monotonic() + self.load_s / self.speedup
        self._occupy()

    def follow(self, registration: Registration) -> tuple[str, ...]:
        """Take over what a changed registration says of a running server; the fields that need a new one."""
        fixed = tuple(
            name for name in _FIXED if getattr(registration, name) != getattr(self.registration, name)
        )
        if registration.tokens_per_second != self.registration.tokens_per_second:
            self.tokens_per_second = registration.tokens_per_second or default_tokens_per_second(self.vram_gb)
        kept = {name: getattr(self.registration, name) for name in _FIXED}
        self.registration = registration.model_copy(update=kept)
        return fixed

    def hold_memory(self) -> None:
        """Take the memory once more, after a predecessor of the same name gave up what was its own."""
        if self._loaded and not self._asleep:
            self._occupy()

    def unload(self) -> None:
        """Give the memory back."""
        self._loaded = self._asleep = False
        self._card.vacate(self.registration.name)

    def fall_asleep(self) -> None:
        """Give the memory back but go on listening; a request (or ``GET /slots``) wakes it."""
        self._asleep = True
        self._card.vacate(self.registration.name)

    def set_fault(self, fault: Fault | None) -> None:
        """Replace the fault; what hung because of the old one goes on."""
        self.healed.set()
        self.healed = asyncio.Event()
        self.fault = fault
        self._strikes_left = fault.times if fault else None

    def take_fault(self) -> Fault | None:
        """The fault that strikes the next completion; one with ``times`` heals after its last."""
        fault = self.fault
        if fault is None or not fault.of_requests:
            return None
        self.counters.struck += 1
        if self._strikes_left is not None:
            self._strikes_left -= 1
            if self._strikes_left == 0:
                self.fault = None
        return fault

    def output_rate(self, fault: Fault | None) -> float:
        """Tokens a second that one request gets now, however many run beside it."""
        slow = _SLOW_FACTOR if fault is not None and fault.kind is FaultKind.SLOW else 1.0
        return self.tokens_per_second * self.speedup / slow

    def prompt_rate(self, fault: Fault | None) -> float:
        """Prompt tokens a second."""
        return self.output_rate(fault) * _PREFILL_SPEEDUP

    def _occupy(self) -> None:
        self._card.occupy(self.registration.name, self.vram_gb * MB_PER_GB)

    def _running_changed(self, running: int) -> None:
        self._card.set_running(self.registration.name, running)


class ModelState(ServedModel):
    """A model in slots, as llama.cpp serves it."""

    def __init__(self, registration: Registration, settings: SimulatorSettings, card: Card) -> None:
        super().__init__(registration, settings, card)
        self.pool = SlotPool(registration.slots or _DEFAULT_SLOTS, self._running_changed)

    @property
    def slots(self) -> int:
        return len(self.pool.slots)

    @property
    def running(self) -> int:
        return self.pool.running

    @property
    def deferred(self) -> int:
        return self.pool.deferred

    @property
    def peak_running(self) -> int:
        return self.pool.peak_running

    @property
    def starting(self) -> bool:
        """Loading for the first time: all is answered 503 (a sleeper that wakes lets requests wait)."""
        return self.residence is Residence.LOADING and not self._waking

    async def ready(self) -> None:
        """Wake up if asleep, and wait until loaded."""
        if self._asleep:
            self.begin_load(waking=True)
        await asyncio.sleep(self.loading_s)
