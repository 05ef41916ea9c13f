"""The filter of routing: why a model can't take a request now, or None."""

from __future__ import annotations

from shared.config import MemoryThresholds, ThermalThresholds
from shared.decision.capacity import GpuRoom, ModelRoom
from shared.decision.causes import Cause
from shared.decision.estimate import ENOUGH_SAMPLES, likely_duration_ms
from shared.decision.explain import degrees, last_known, memory_use
from shared.decision.levels import MEMORY_MARGIN, THERMAL_MARGIN_C, released_below
from shared.decision.memo import once
from shared.decision.placement import is_stale
from shared.decision.readings import finite
from shared.decision.snapshot import Gpu, LeftOut, Model, Request, Rules, Snapshot
from shared.states import Pressure, Residence

KV_LIMIT = 0.9
"""Share of KV cache in use from which a backend would preempt or queue (decision model, section 4)."""

_RESIDENCES = {
    Residence.UNLOADED: "it is unloaded; it serves once it has been loaded",
    Residence.LOADING: "it is loading; it serves when that is done",
    Residence.DRAINING: "it takes no new work (paused, or draining before it is unloaded); it serves once it "
    "has been resumed or loaded again",
    Residence.UNLOADING: "it is unloading; it serves when it has been loaded again",
    Residence.SLEEPING: "it is sleeping; it serves once it has been woken",
    Residence.FAILED: "it has failed its last probe; it serves when a probe finds it answering again",
}


def obstacle(room: ModelRoom, request: Request, snapshot: Snapshot) -> LeftOut | None:
    """The first thing that keeps the model from the request, in the order of the codes; None = a candidate.

    Whether the model serves the asked name or agent type is settled before.
    """
    model = room.model
    return (
        _context(model, request)
        or once(room.memo, "obstacle", lambda: _for_anybody(room, snapshot.rules))
        or _deadline(model, request)
        or _claimed(model, snapshot)
    )


def _for_anybody(room: ModelRoom, rules: Rules) -> LeftOut | None:
    """What keeps the model from every request."""
    model = room.model
    return (
        _breaker(model)
        or _saturation(model)
        or _name(model)
        or _residence(model)
        or _memory(room, rules.memory)
        or _heat(room, rules.thermal)
        or _gpu_busy(room)
        or _model_busy(room)
        or _kv(model)
    )


def _context(model: Model, request: Request) -> LeftOut | None:
    if model.context_tokens >= request.min_context_tokens:
        return None
    if not model.context_known:
        return LeftOut(
            Cause.CONTEXT_UNKNOWN,
            "its context is not known yet; it is judged once its monitor has probed it, or context_tokens is "
            "registered",
        )
    return LeftOut(
        Cause.CONTEXT_TOO_SMALL,
        f"its context of {model.context_tokens} tokens is below the {request.min_context_tokens} asked for; "
        "a smaller min_context_tokens would fit",
    )


def _breaker(model: Model) -> LeftOut | None:
    if model.breaker_open_for_ms > 0:
        return LeftOut(
            Cause.BREAKER_OPEN,
            f"its breaker is open ({model.failure_count} failures); "
            f"it is probed in {model.breaker_open_for_ms / 1000:.1f} s",
        )
    if model.breaker_half_open and model.in_flight > 0:
        return LeftOut(
            Cause.BREAKER_OPEN,
            f"its breaker is half open ({model.failure_count} failures) and the one probe is under way; "
            "it serves again when that succeeds",
        )
    return None


def _saturation(model: Model) -> LeftOut | None:
    if not model.saturated_for_ms > 0:
        return None
    return LeftOut(
        Cause.SATURATED,
        f"its backend said that it is saturated; it is asked again in {model.saturated_for_ms / 1000:.1f} s",
    )


def _name(model: Model) -> LeftOut | None:
    if not model.name_unknown_for_ms > 0:
        return None
    return LeftOut(
        Cause.NAME_UNKNOWN,
        f"its server knows no model {model.upstream_name!r}; it is asked again in "
        f"{model.name_unknown_for_ms / 1000:.1f} s; its monitor finds it out, or register upstream_name",
    )


def _residence(model: Model) -> LeftOut | None:
    # Never probed is let through: the call itself will tell, and a refused connection costs no attempt.
    if model.residence is Residence.RESIDENT or model.residence is Residence.UNKNOWN:
        return None
    return LeftOut(Cause.NOT_RESIDENT, _RESIDENCES[model.residence])


def _memory(room: ModelRoom, thresholds: MemoryThresholds) -> LeftOut | None:
    for gpu in room.gpus:
        if gpu.gpu.full:
            # Below full the card is still critical, where all but its smallest model go on waiting.
            bound = thresholds.critical if gpu.smallest == room.model.name else thresholds.high
            return LeftOut(
                Cause.MEMORY_FULL,
                f"GPU {gpu.gpu.id} has no memory left to admit work ({memory_use(gpu.gpu)}); "
                + _memory_release(gpu.gpu, bound),
            )
    for gpu in room.gpus:
        if gpu.gpu.pressure is Pressure.CRITICAL and gpu.smallest != room.model.name:
            return LeftOut(
                Cause.MEMORY_CRITICAL,
                f"GPU {gpu.gpu.id} is at critical memory pressure ({memory_use(gpu.gpu)}), where only its "
                f"smallest model {gpu.smallest} serves; " + _memory_release(gpu.gpu, thresholds.high),
            )
    return None


def _memory_release(gpu: Gpu, bound: float) -> str:
    share = 100 * released_below(bound, MEMORY_MARGIN)
    return f"it goes on when use falls below {share:.0f} % for two samples" + _stopped(gpu)


def _heat(room: ModelRoom, thresholds: ThermalThresholds) -> LeftOut | None:
    for gpu in room.gpus:
        if gpu.factor <= 0:
            release = released_below(thresholds.throttling, THERMAL_MARGIN_C)
            return LeftOut(
                Cause.HEAT_CRITICAL,
                f"GPU {gpu.gpu.id} is at critical heat ({degrees(gpu.gpu)}): what runs ends, nothing new "
                f"starts; it goes on when it has cooled to {release:.0f} C for two samples"
                + _stopped(gpu.gpu),
            )
    return None


def _stopped(gpu: Gpu) -> str:
    if not is_stale(gpu):
        return ""
    since = f" ({known})" if (known := last_known(gpu)) else ""
    return f"; its readings have stopped{since}, so its monitor must report first"


def _gpu_busy(room: ModelRoom) -> LeftOut | None:
    for gpu in room.gpus:
        if gpu.gpu.in_flight >= gpu.limit:
            return LeftOut(
                Cause.GPU_BUSY,
                f"GPU {gpu.gpu.id} has {gpu.gpu.in_flight} of at most {gpu.limit} requests in flight"
                f"{_reduced(gpu)}; it goes on when one of them ends",
            )
    return None


def _reduced(gpu: GpuRoom) -> str:
    return "" if gpu.factor >= 1 else f" ({gpu.slots} slots, reduced by {gpu.gpu.thermal.value} heat)"


def _model_busy(room: ModelRoom) -> LeftOut | None:
    if room.busy < room.limit:
        return None
    hottest = min(room.gpus, key=lambda gpu: gpu.factor, default=None)
    return LeftOut(
        Cause.MODEL_BUSY,
        f"it has {room.busy} requests running or waiting and at most {room.limit} at once"
        f"{'' if hottest is None or hottest.factor >= 1 else _cut(room.model, hottest)}; "
        "it goes on when one of them ends",
    )


def _cut(model: Model, gpu: GpuRoom) -> str:
    return f" ({model.slots} slots, reduced by {gpu.gpu.thermal.value} heat of GPU {gpu.gpu.id})"


def _kv(model: Model) -> LeftOut | None:
    use = finite(model.kv_use)
    if use is None or use < KV_LIMIT:
        return None
    return LeftOut(
        Cause.KV_FULL,
        f"its KV cache is {100 * use:.0f} % full; it goes on when that falls below {100 * KV_LIMIT:.0f} %",
    )


def _deadline(model: Model, request: Request) -> LeftOut | None:
    deadline = finite(request.deadline_in_ms)
    if deadline is None or model.samples < ENOUGH_SAMPLES:
        return None
    likely = likely_duration_ms(model, request)
    if likely <= deadline:
        return None
    return LeftOut(
        Cause.DEADLINE,
        f"it takes about {likely / 1000:.1f} s and the deadline is in {deadline / 1000:.1f} s; "
        "a later deadline or a smaller max_tokens would fit",
    )


def _claimed(model: Model, snapshot: Snapshot) -> LeftOut | None:
    if model.name not in snapshot.busy:
        return None
    return LeftOut(
        Cause.CLAIMED_BUSY,
        "its last slot was taken since it was looked at; it is tried again at the next look",
    )
