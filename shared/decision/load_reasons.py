"""The words of loads: why one is not possible now and what would change that, and what a plan would do."""

from __future__ import annotations

from collections.abc import Iterable

from shared.decision.causes import LoadCause
from shared.decision.explain import listed, memory_use
from shared.decision.memory import MB_PER_GB
from shared.decision.placement import Occupancy
from shared.decision.snapshot import Gpu, Model, Obstacle, Plan
from shared.states import Residence

NOT_CARRIED_OUT = "which no launcher carries out yet"

_STATES = {
    Residence.RESIDENT: (LoadCause.NOT_ABSENT, "it is resident already; there is nothing to load"),
    Residence.UNKNOWN: (LoadCause.NOT_ABSENT, "it was never probed; a load is judged once its monitor has"),
    Residence.FAILED: (
        LoadCause.NOT_ABSENT,
        "its server has failed and may hold its memory; a load is judged once a probe finds it gone "
        "or answering",
    ),
    Residence.LOADING: (LoadCause.IN_TRANSITION, "it is loading; it serves when that is done"),
    Residence.DRAINING: (LoadCause.IN_TRANSITION, "it is draining; it can be loaded when it is gone"),
    Residence.UNLOADING: (LoadCause.IN_TRANSITION, "it is unloading; it can be loaded when it is gone"),
}
_BLOCKED = {
    LoadCause.ALL_PINNED: "what stands in its way is pinned ({names}); unpinning one would make room",
    LoadCause.MEMORY_CRITICAL: "memory pressure is critical, and unloading what is there ({names}) "
    "would not end it; "
    "it can be loaded when use falls",
    LoadCause.RECENT_SWAP: "{names} was loaded only just now; it can be loaded when that swap has "
    "paid, or for three "
    "times its gain",
    LoadCause.VICTIMS_BUSY: "what stands in its way is in use, wanted or of unknown use ({names}); "
    "it can be loaded "
    "when one of them is known to be idle",
}


def not_absent(model: Model) -> Obstacle:
    """Why a model in this state is not to be loaded."""
    code, reason = _STATES[model.residence]
    return Obstacle(code, reason)


def unready(place: Occupancy, fresh: bool) -> Obstacle:
    """Nothing is decided on memory that is not known now."""
    gpu = place.gpu
    if gpu.sample_age_ms is not None and not fresh:
        return Obstacle(
            LoadCause.STALE_READING,
            f"the last reading of GPU {gpu.id} is {gpu.sample_age_ms / 1000:.1f} s old; a load is "
            "judged on a fresh one",
        )
    return Obstacle(
        LoadCause.MEMORY_UNKNOWN,
        f"memory of GPU {gpu.id} is unknown; a load is judged once its monitor reads it and every resident "
        "vLLM model there has its vram_gb registered",
    )


def size(place: Occupancy, needs_mb: float) -> str:
    """Why it does not fit even alone."""
    total, foreign = place.gpu.memory_total_mb or 0.0, place.foreign_mb or 0.0
    return (
        f"it needs {gb(needs_mb)} and GPU {place.gpu.id} has {gb(total)}, of which others hold "
        f"{gb(foreign)} and "
        f"{gb(place.reserve_mb)} stay free; it fits once others give way, with a smaller model or reserve"
    )


def large(gpu: Gpu, model: Model) -> Obstacle:
    """No large loads from high pressure on."""
    return Obstacle(
        LoadCause.LARGE_UNDER_PRESSURE,
        f"it is large ({model.vram_gb or 0:.1f} GB) and GPU {gpu.id} is at {gpu.pressure.value} "
        "memory pressure "
        f"({memory_use(gpu)}); it can be loaded when that falls",
    )


def blocked(cause: LoadCause, gpu: str, models: Iterable[Model]) -> Obstacle:
    """What stands in its way on this GPU."""
    names = listed(model.name for model in models)
    return Obstacle(cause, f"there is no room on GPU {gpu}: {_BLOCKED[cause].format(names=names)}")


def gb(megabytes: float) -> str:
    return f"{megabytes / MB_PER_GB:.1f} GB"


def plan_words(plan: Plan) -> str:
    """What would be done, as half a sentence: 'loaded on GPU host/0 after unloading x (frees 6.5 GB)'."""
    done = f"{'woken' if plan.wakes else 'loaded'} on GPU {plan.gpu}"
    if not plan.victims:
        return f"{done} ({gb(plan.needs_mb)} into {gb(plan.available_mb)} that are free)"
    names = " and ".join(f"{victim.model} (frees {gb(victim.frees_mb)})" for victim in plan.victims)
    return f"{done} after unloading {names}"
