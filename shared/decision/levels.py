"""Memory pressure and heat level of one GPU: a pure state machine with hysteresis.

Levels rise at once. A bound is left downwards only when two consecutive readings lie ``MEMORY_MARGIN``
(``THERMAL_MARGIN_C``) below it, so a fall may pass several levels, as far as both readings allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from shared.config import MemoryThresholds, ThermalThresholds
from shared.decision.readings import finite
from shared.states import Pressure, Thermal

MEMORY_MARGIN = 0.03
"""Share of memory below a bound at which it counts as left (decision model, section 2)."""

THERMAL_MARGIN_C = 3.0
"""Degrees Celsius below a bound at which it counts as left (decision model, section 3)."""

_FACTORS = {
    Thermal.UNKNOWN: 1.0,  # never read counts as normal
    Thermal.NORMAL: 1.0,
    Thermal.WARNING: 0.9,
    Thermal.THROTTLING: 0.5,
    Thermal.CRITICAL: 0.0,
}


class MemoryStep(StrEnum):
    """Pressure with ``full``, the upper part of critical, told apart."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"
    FULL = "full"


_STEPS = tuple(MemoryStep)
_HEATS = (Thermal.NORMAL, Thermal.WARNING, Thermal.THROTTLING, Thermal.CRITICAL)
_DEFAULT_MEMORY = MemoryThresholds()
_DEFAULT_THERMAL = ThermalThresholds()


@dataclass(frozen=True, slots=True)
class LevelState:
    """The levels of one GPU and what the last counted reading, taken with its margin, asked for.

    ``memory_asked`` and ``thermal_asked`` are the memory of the hysteresis: a level falls to the worse of two
    consecutive ones. None = no reading yet. Raises ``ValueError`` when ``full`` stands beside another
    pressure than critical.
    """

    pressure: Pressure = Pressure.UNKNOWN
    full: bool = False
    thermal: Thermal = Thermal.UNKNOWN
    memory_asked: MemoryStep | None = None
    thermal_asked: Thermal | None = None

    def __post_init__(self) -> None:
        if self.full and self.pressure is not Pressure.CRITICAL:
            raise ValueError(f"full memory at pressure {self.pressure.value!r}: only 'critical' can be full")

    def to_fields(self) -> dict[str, str]:
        """Flat strings for a Redis hash; what is unset is the empty string."""
        return {
            "pressure": self.pressure.value,
            "full": "1" if self.full else "0",
            "thermal": self.thermal.value,
            "memory_asked": self.memory_asked.value if self.memory_asked else "",
            "thermal_asked": self.thermal_asked.value if self.thermal_asked else "",
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> LevelState:
        """The state in a hash; missing fields are unread, foreign ones are ignored.

        Raises ``ValueError`` on a value that names no level.
        """
        memory_asked, thermal_asked = fields.get("memory_asked"), fields.get("thermal_asked")
        return cls(
            pressure=Pressure(fields.get("pressure", Pressure.UNKNOWN)),
            full=fields.get("full", "0") == "1",
            thermal=Thermal(fields.get("thermal", Thermal.UNKNOWN)),
            memory_asked=MemoryStep(memory_asked) if memory_asked else None,
            thermal_asked=Thermal(thermal_asked) if thermal_asked else None,
        )


def next_levels(
    state: LevelState,
    *,
    utilization: float | None,
    temperature_c: float | None,
    thermal_slowdown: bool,
    fresh: bool,
    memory: MemoryThresholds = _DEFAULT_MEMORY,
    thermal: ThermalThresholds = _DEFAULT_THERMAL,
) -> LevelState:
    """The levels after one sample.

    ``utilization`` is the effective share of memory in use (0..1). None or not finite = unknown: that leaves
    the level as it is and is no step of the hysteresis. The same holds for ``temperature_c``, and for the
    whole sample when it is not ``fresh``. ``thermal_slowdown`` (the driver's own flag) means throttling at
    least, also where the temperature is unknown.
    """
    if not fresh:
        return state
    pressure, full, memory_asked = _next_memory(state, finite(utilization), memory)
    heat, thermal_asked = _next_thermal(state, finite(temperature_c), thermal_slowdown, thermal)
    return LevelState(pressure, full, heat, memory_asked, thermal_asked)


def concurrency_factor(thermal: Thermal) -> float:
    """The share of its slots that a GPU at this heat level may use (decision model, section 3)."""
    return _FACTORS[thermal]


def released_below(bound: float, margin: float) -> float:
    """Where a level that begins at ``bound`` is left downwards.

    A bound smaller than two margins is left at its half: otherwise no reading could ever leave it.
    """
    return round(bound - min(margin, bound / 2), 9)


def _next_memory(
    state: LevelState, utilization: float | None, thresholds: MemoryThresholds
) -> tuple[Pressure, bool, MemoryStep | None]:
    if utilization is None:
        return state.pressure, state.full, state.memory_asked
    bounds = (thresholds.low, thresholds.normal, thresholds.high, thresholds.critical)
    now = sum(utilization >= bound for bound in bounds)
    asked = sum(utilization >= released_below(bound, MEMORY_MARGIN) for bound in bounds)
    before = _STEPS.index(state.memory_asked) if state.memory_asked else None
    step = _STEPS[_step(_memory_rank(state), before, now, asked)]
    full = step is MemoryStep.FULL
    return (Pressure.CRITICAL if full else Pressure(step.value)), full, _STEPS[asked]


def _next_thermal(
    state: LevelState, temperature: float | None, slowdown: bool, thresholds: ThermalThresholds
) -> tuple[Thermal, Thermal | None]:
    current = _HEATS.index(state.thermal) if state.thermal in _HEATS else None
    floor = _HEATS.index(Thermal.THROTTLING) if slowdown else 0
    if temperature is None:
        if not slowdown:
            return state.thermal, state.thermal_asked
        # The flag alone can't say how hot it is, so it never takes part in cooling down.
        raised = _HEATS[max(floor, current or 0)]
        return raised, raised
    now = max(floor, _heat_rank(temperature, thresholds, 0.0))
    asked = max(floor, _heat_rank(temperature, thresholds, THERMAL_MARGIN_C))
    before = _HEATS.index(state.thermal_asked) if state.thermal_asked else None
    return _HEATS[_step(current, before, now, asked)], _HEATS[asked]


def _heat_rank(temperature: float, thresholds: ThermalThresholds, margin: float) -> int:
    return (
        (temperature >= released_below(thresholds.normal, margin))
        + (temperature > released_below(thresholds.warning, margin))
        + (temperature > released_below(thresholds.throttling, margin))
    )


def _memory_rank(state: LevelState) -> int | None:
    if state.pressure is Pressure.UNKNOWN:
        return None
    return _STEPS.index(MemoryStep.FULL if state.full else MemoryStep(state.pressure.value))


def _step(current: int | None, before: int | None, now: int, asked: int) -> int:
    """The next rank; ``before`` and ``asked`` are what the last and this reading ask for, margin included."""
    if current is None:
        return now
    if before is None:
        return max(now, current)
    return max(now, min(current, max(before, asked)))
