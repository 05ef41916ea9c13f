"""Memory and requests some hours ahead, built from one view of Redis and the buckets of the last days."""

from __future__ import annotations

from collections.abc import Sequence

from services.api.forecast_bodies import (
    Available,
    CurrentUsage,
    Foreign,
    GpuForecast,
    Managed,
    MemoryForecast,
    Range,
    RateForecast,
    Track,
)
from services.api.representations import number, whole
from shared.config import Settings
from shared.decision.explain import listed
from shared.decision.forecast import HORIZONS_NEEDED, LEVEL, Forecast, Quality, project
from shared.decision.forecast_grid import RATE_STEP_MIN, levels, rates
from shared.decision.memory import MB_PER_GB, available_mb
from shared.snapshots import probe_stale_ms
from shared.states import Residence
from shared.store.history import History
from shared.store.records import GpuView, ModelView, View

_STALE_INTERVALS = 3
_MOVING = (Residence.LOADING, Residence.UNLOADING)
_HOLDING = (Residence.RESIDENT, Residence.DRAINING, *_MOVING)


def memory_forecast(
    view: View, gpus: Sequence[GpuView], history: History, hours: float, settings: Settings
) -> MemoryForecast:
    """The forecast for these GPUs and all models. Takes up to 0.1 s of processor a GPU."""
    found = [_gpu(gpu, view, history, hours, settings) for gpu in gpus]
    nothing = GpuForecast(
        gpu=None,
        forecast=_track(Forecast(Quality.NO_SAMPLES, "none", 0.0)),
        detail="gpu.source is none: memory is unknown"
        if settings.gpu.source == "none"
        else "no GPU was sampled yet: is a monitor running, and does it see an NVML driver?",
    )
    sampled = [one for one in found if one.current_usage.used_gb is not None]
    first = (sampled or found or [nothing])[0]
    return MemoryForecast(
        hours=hours,
        level=LEVEL,
        gpu=first.gpu,
        current_usage=first.current_usage,
        projected_headroom_gb=first.projected_headroom_gb,
        available_for_inference=first.available_for_inference,
        forecast=first.forecast,
        detail=first.detail,
        gpus=found,
        requests_per_minute={name: _rate(name, history, hours) for name in sorted(history.models)},
    )


def _gpu(gpu: GpuView, view: View, history: History, hours: float, settings: Settings) -> GpuForecast:
    usage = _usage(gpu, view.now_ms, settings)
    used, total = number(gpu.sample, "memory_used_mb"), number(gpu.sample, "memory_total_mb")
    residents = [model for model in view.models if gpu.id in _places(model)]
    unseen = _unseen(gpu, view)
    if used is None or total is None:
        foreign = Forecast(Quality.NO_SAMPLES, "none", 0.0)
    elif unseen is None:
        foreign = _foreign(gpu.id, history, hours, total, _beside(used, residents))
    else:
        # All that is used in one, as last read: its parts are not known.
        foreign = _as_it_is(used, history, hours)
    body = GpuForecast(
        gpu=gpu.id,
        current_usage=usage,
        forecast=_track(foreign),
        source=gpu.sample.get("source"),
        detail=_detail(gpu.id, usage, foreign, hours, unseen),
    )
    if used is None or total is None:
        return body
    reserve = number(gpu.sample, "reserve_mb")
    reserve = settings.gpu.reserve_gb * MB_PER_GB if reserve is None else reserve
    if unseen is None:
        return body.model_copy(update=_projections(used, total, reserve, residents, foreign))
    whole_use = _projections(used, total, reserve, (), foreign)
    return body.model_copy(update=whole_use | {"foreign": Foreign(), "managed": Managed()})


def _unseen(gpu: GpuView, view: View) -> str | None:
    """What has to be looked at before it is known whose memory is used there, by the rule of history.lua.

    None: all is known. Our own models, not probed yet, would else be taken for somebody else's.
    """
    at_ms = number(gpu.sample, "ts_ms") or view.now_ms
    stale_ms = probe_stale_ms(number(gpu.sample, "interval_ms") or 0.0)
    host = gpu.id.rpartition("/")[0]
    names, moving = [], []
    for model in view.models:
        fields, name = model.fields, model.registration.name
        probe_ms = number(fields, "probe_ms")
        if model.registration.host in (None, host) and (probe_ms is None or at_ms - probe_ms > stale_ms):
            names.append(name)
        elif gpu.id in _places(model) and fields["residence"] in _MOVING and "memory_mb" not in fields:
            moving.append(name)
    if names:
        return f"a monitor has probed {listed(names)}"
    if moving:
        return f"{listed(moving)} has come or gone"
    return None if view.models else "a model is registered"


def _projections(
    used: float, total: float, reserve: float, residents: Sequence[ModelView], foreign: Forecast
) -> dict[str, Range | Available | Foreign | Managed | float | None]:
    """The fields of ``GpuForecast`` that need a reading; figures in MB."""
    managed = sum(_held_mb(model) for model in residents)
    beside = _beside(used, residents)
    taken = [_bounded(managed, part, total) for part in (foreign.low, foreign.mid, foreign.high)]
    headroom = [None if part is None else total - part for part in reversed(taken)]
    peak = _bounded(managed, foreign.peak_high, total)
    free_now = available_mb(
        total_mb=total, used_mb=used, reserve_mb=reserve, committed_mb=managed, foreign_mb=beside
    )
    return {
        "projected_usage_gb": _range(taken),
        "projected_headroom_gb": _range(headroom),
        "available_for_inference": Available(
            now_gb=_gb(free_now),
            projected_gb=_range([None if part is None else max(0.0, part - reserve) for part in headroom]),
            at_peak_gb=None if peak is None else _gb(max(0.0, total - peak - reserve)),
        ),
        "reserve_gb": _gb(reserve),
        "foreign": Foreign(
            now_gb=_gb(beside),
            projected_gb=_range([foreign.low, foreign.mid, foreign.high]),
            peak_high_gb=_gb(foreign.peak_high),
        ),
        "managed": Managed(
            now_gb=_gb(managed),
            projected_gb=_gb(managed),
            models=sorted(model.registration.name for model in residents),
        ),
    }


def _beside(used: float, residents: Sequence[ModelView]) -> float:
    return max(0.0, used - sum(_held_mb(model) for model in residents))


def _as_it_is(mb: float, history: History, hours: float) -> Forecast:
    return project(levels({history.minute: mb}, history.minute), step_min=1, hours=hours)


def _foreign(gpu: str, history: History, hours: float, total_mb: float, now_mb: float) -> Forecast:
    buckets = history.memory(gpu)
    if not buckets:
        # The first one is written with the reading after the first probes.
        return _as_it_is(now_mb, history, hours)
    means = {minute: bucket.foreign_mean_mb for minute, bucket in buckets.items()}
    peaks = {minute: bucket.foreign_max_mb for minute, bucket in buckets.items()}
    return project(
        levels(means, history.minute),
        step_min=1,
        hours=hours,
        peaks=levels(peaks, history.minute),
        ceiling=total_mb,
    )


def _rate(model: str, history: History, hours: float) -> RateForecast:
    found = project(rates(history.requests(model), history.minute), step_min=RATE_STEP_MIN, hours=hours)
    return RateForecast(
        now=_rounded(found.last),
        projected=Range(low=_rounded(found.low), mid=_rounded(found.mid), high=_rounded(found.high)),
        forecast=_track(found),
        detail="it has started no request in the last 8 days"
        if found.quality is Quality.NO_SAMPLES
        else _weakness(found, hours),
    )


def _usage(gpu: GpuView, now_ms: int, settings: Settings) -> CurrentUsage:
    sample = gpu.sample
    used, total = number(sample, "memory_used_mb"), number(sample, "memory_total_mb")
    sampled_ms = whole(sample, "ts_ms")
    age_ms = None if sampled_ms is None else max(0, now_ms - sampled_ms)
    interval_ms = number(sample, "interval_ms") or settings.gpu.interval_s * 1000
    return CurrentUsage(
        used_gb=_gb(used),
        total_gb=_gb(total),
        free_gb=None if used is None or total is None else _gb(total - used),
        utilization_percent=round(100 * used / total, 2) if used is not None and total else None,
        sample_age_ms=age_ms,
        stale=None if age_ms is None else age_ms > _STALE_INTERVALS * interval_ms,
    )


def _detail(gpu: str, usage: CurrentUsage, foreign: Forecast, hours: float, unseen: str | None) -> str | None:
    if usage.sample_age_ms is None:
        return f"no sample: the monitor of {gpu.rpartition('/')[0]} is silent, so nothing is projected"
    if usage.used_gb is None or usage.total_gb is None:
        return "its memory can't be read, so nothing is projected"
    weak = _weakness(foreign, hours)
    stale = f"the latest sample is {usage.sample_age_ms} ms old" if usage.stale else None
    mixed = f"how much of it is ours is not known until {unseen}" if unseen else None
    return "; ".join(part for part in (stale, mixed, weak) if part) or None


def _weakness(found: Forecast, hours: float) -> str | None:
    match found.quality:
        case Quality.NOT_ENOUGH_HISTORY:
            return (
                f"{found.history_hours:.2f} h of history, {HORIZONS_NEEDED * hours:g} h are needed for "
                f"{hours:g} h ahead: the projection is the last value, without an interval"
            )
        case Quality.NO_SAMPLES:
            return "no history yet: nothing is projected"
        case Quality.MEASURED:
            return None


def _places(model: ModelView) -> list[str]:
    """The GPUs that a model holds memory on, as its latest probe found it."""
    fields = model.fields
    return fields.get("gpu", "").split(",") if fields.get("residence") in _HOLDING else []


def _held_mb(model: ModelView) -> float:
    """What it holds on each of its GPUs, by the rule of history.lua: as measured, else as registered."""
    measured = number(model.fields, "memory_mb")
    whole_mb = (model.registration.vram_gb or 0.0) * MB_PER_GB if measured is None else measured
    return whole_mb / len(_places(model))


def _bounded(managed_mb: float, foreign_mb: float | None, total_mb: float) -> float | None:
    return None if foreign_mb is None else min(total_mb, managed_mb + foreign_mb)


def _track(found: Forecast) -> Track:
    return Track(
        method=found.method,
        quality=found.quality,
        history_hours=round(found.history_hours, 2),
        mase=_rounded(found.mase),
        mase_seasonal=_rounded(found.mase_seasonal),
        coverage=_rounded(found.coverage),
        checked=found.checked,
        weights={name: round(share, 3) for name, share in found.weights.items()},
    )


def _range(mb: Sequence[float | None]) -> Range:
    low, mid, high = (_gb(part) for part in mb)
    return Range(low=low, mid=mid, high=high)


def _gb(mb: float | None) -> float | None:
    return None if mb is None else round(mb / MB_PER_GB, 3)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
