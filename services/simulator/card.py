"""The simulated GPU: memory, heat, power and utilisation as its models use it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from shared.config import SimulatorSettings

UUID = "GPU-simulated-0"
MB_PER_GB = 1024.0
_RUNNING_MB = 24.0
"""Scratch memory of one running request."""
_IDLE_C, _FULL_C = 36.0, 76.0
"""Where the temperature settles when idle and at full load (a 3090's target is 83)."""
_HEAT_TIME_S = 20.0
"""Time constant of heating and cooling, before ``simulator.speedup``."""
_SLOWDOWN_C = 93.0
"""A 3090's maximum operating temperature."""
_IDLE_W, _LIMIT_W = 30.0, 350.0


@dataclass(slots=True)
class Pins:
    """Readings held at a value whatever the models do; None = not held."""

    memory_used_mb: float | None = None
    foreign_mb: float | None = None
    """Memory of something that is not ours, instead of ``simulator.foreign_gb``."""
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A model that holds memory of the card."""

    name: str
    memory_mb: float


class Card:
    """One GPU. The temperature follows utilisation with a lag and is computed when looked at."""

    def __init__(self, settings: SimulatorSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = settings.gpu_name
        self.memory_total_mb = settings.memory_total_gb * MB_PER_GB
        self._foreign_mb = settings.foreign_gb * MB_PER_GB
        self.pins = Pins()
        self._clock = clock
        self._heat_time_s = _HEAT_TIME_S / settings.speedup
        self._held: dict[str, float] = {}
        self._pools: set[str] = set()
        self._running: dict[str, int] = {}
        self._temperature_c = _IDLE_C
        self._heated_at = clock()

    def occupy(self, name: str, memory_mb: float, *, pool: bool = False) -> None:
        """A model's weights and context are on the card from now on.

        A ``pool`` holds all that its requests will ever need, so that running ones take nothing more.
        """
        self._held[name] = memory_mb
        if pool:
            self._pools.add(name)
        else:
            self._pools.discard(name)

    def vacate(self, name: str) -> None:
        """A model has left the card."""
        self._held.pop(name, None)
        self.set_running(name, 0)

    def set_running(self, name: str, count: int) -> None:
        """How many requests of a model are computing."""
        self._settle()
        self._running[name] = count

    @property
    def running(self) -> int:
        return sum(self._running.values())

    @property
    def holders(self) -> tuple[Holder, ...]:
        return tuple(Holder(name, memory_mb) for name, memory_mb in sorted(self._held.items()))

    @property
    def memory_used_mb(self) -> float:
        if self.pins.memory_used_mb is not None:
            return min(self.memory_total_mb, self.pins.memory_used_mb)
        foreign_mb = self._foreign_mb if self.pins.foreign_mb is None else self.pins.foreign_mb
        scratch = sum(count for name, count in self._running.items() if name not in self._pools)
        used = foreign_mb + sum(self._held.values()) + _RUNNING_MB * scratch
        return min(self.memory_total_mb, used)

    @property
    def utilization(self) -> float:
        """Share of time computing: one request fills half of the card, each further one half of the rest."""
        return 1.0 - math.pow(0.5, self.running)

    @property
    def temperature_c(self) -> float:
        if self.pins.temperature_c is not None:
            return self.pins.temperature_c
        self._settle()
        return self._temperature_c

    @property
    def power_draw_w(self) -> float:
        return _IDLE_W + self.utilization * (_LIMIT_W - _IDLE_W)

    @property
    def power_limit_w(self) -> float:
        return _LIMIT_W

    @property
    def fan_percent(self) -> float:
        return min(100.0, max(30.0, 30.0 + 1.75 * (self.temperature_c - 50.0)))

    @property
    def thermal_slowdown(self) -> bool:
        return self.temperature_c >= _SLOWDOWN_C

    def _settle(self) -> None:
        """Move the temperature towards where the load of the time since the last look drives it."""
        now = self._clock()
        target = _IDLE_C + self.utilization * (_FULL_C - _IDLE_C)
        remains = math.exp(-(now - self._heated_at) / self._heat_time_s)
        self._temperature_c = target + (self._temperature_c - target) * remains
        self._heated_at = now
