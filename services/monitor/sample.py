"""A reading as the flat fields of a sample, and a change of level as a sentence."""

from __future__ import annotations

from shared.decision.levels import LevelState
from shared.decision.memory import MB_PER_GB
from shared.gpu.source import GpuProcess, GpuReading, GpuSource
from shared.states import Thermal

_MEMORY = ("unknown", "low", "normal", "high", "critical", "full")
_THERMAL = (Thermal.UNKNOWN, Thermal.NORMAL, Thermal.WARNING, Thermal.THROTTLING, Thermal.CRITICAL)


def number(value: float | None) -> str | None:
    """A number as short as it is exact to six decimals."""
    if value is None:
        return None
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def flag(value: bool | None) -> str | None:
    return None if value is None else str(int(value))


def sample_fields(
    reading: GpuReading,
    *,
    source: GpuSource,
    host: str,
    interval_s: float,
    reserve_gb: float,
    utilization: float | None,
) -> dict[str, str]:
    """The fields of ``orch:gpu:samples``; what is unknown is left out, and ``unread`` says why if it can."""
    fields = {
        "name": reading.name,
        "uuid": reading.uuid,
        "host": host,
        "index": str(reading.index),
        "source": source.name,
        "simulated": "1" if source.simulated else None,
        "memory_total_mb": number(reading.memory_total_mb),
        "memory_used_mb": number(reading.memory_used_mb),
        "memory_free_mb": number(reading.memory_free_mb),
        "gpu_utilization_percent": number(reading.gpu_utilization_percent),
        "effective_utilization": number(utilization),
        "temperature_c": number(reading.temperature_c),
        "power_draw_w": number(reading.power_draw_w),
        "power_limit_w": number(reading.power_limit_w),
        "fan_percent": number(reading.fan_percent),
        "thermal_slowdown": flag(reading.thermal_slowdown),
        "power_capped": flag(reading.power_capped),
        "clocks_event_reasons": number(reading.clocks_event_reasons),
        "processes": _processes(reading.processes),
        "unread": ",".join(f"{name}:{why}" for name, why in reading.unread) or None,
        "reserve_mb": number(reserve_gb * MB_PER_GB),
        "interval_ms": number(interval_s * 1000),
    }
    return {name: value for name, value in fields.items() if value is not None}


def level_fields(state: LevelState, utilization: float | None, uuid: str | None) -> dict[str, str]:
    """The fields of the level hash. Where use is unknown, the figure that the held level stands on stays."""
    more = {"effective_utilization": number(utilization), "uuid": uuid}
    return state.to_fields() | {name: value for name, value in more.items() if value is not None}


def _processes(processes: tuple[GpuProcess, ...] | None) -> str | None:
    """``pid:MB`` of each, ``?`` for what is unknown; None where they can't be listed."""
    if processes is None:
        return None
    listed = ((one.pid or one.name or "?", number(one.memory_mb) or "?") for one in processes)
    return ",".join(f"{who}:{size}" for who, size in listed)


def level_change(
    gpu: str,
    old: LevelState,
    new: LevelState,
    reading: GpuReading,
    utilization: float | None,
    pools_mb: float,
) -> str | None:
    """One line that says what changed and on which figures, None if nothing did."""
    before, after = _memory(old), _memory(new)
    memory, thermal = f"memory pressure {after}", f"thermal {new.thermal}"
    if (before, old.thermal) == (after, new.thermal):
        return None
    if before != after:
        memory = f"memory pressure {before} -> {after}{_use(reading, utilization, pools_mb)}"
    if old.thermal != new.thermal:
        thermal = f"thermal {old.thermal} -> {new.thermal}{_heat(reading)}"
    return f"GPU {gpu} {memory}, {thermal}"


def worse(old: LevelState, new: LevelState) -> bool:
    """Whether this change takes something away from requests: worth a warning."""
    return _rises_to(_MEMORY, _memory(old), _memory(new), "critical") or _rises_to(
        _THERMAL, old.thermal, new.thermal, Thermal.THROTTLING
    )


def _rises_to(scale: tuple[str, ...], old: str, new: str, bound: str) -> bool:
    return scale.index(new) > scale.index(old) and scale.index(new) >= scale.index(bound)


def _memory(state: LevelState) -> str:
    return "full" if state.full else state.pressure.value


def _use(reading: GpuReading, utilization: float | None, pools_mb: float) -> str:
    if utilization is None or reading.memory_total_mb is None:
        return ""
    room_gb = (reading.memory_total_mb - pools_mb) / MB_PER_GB
    outside = " outside vLLM pools" if pools_mb else ""
    return f" ({100 * utilization:.1f} % of {room_gb:.1f} GB used{outside})"


def _heat(reading: GpuReading) -> str:
    figures = [] if reading.temperature_c is None else [f"{reading.temperature_c:.0f} C"]
    if reading.thermal_slowdown:
        figures.append("thermal slowdown")
    return f" ({', '.join(figures)})" if figures else ""
