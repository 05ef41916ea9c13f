"""GPU, models, queue and services as GET /v1/gpu/status shows them, built from one view of Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.api.representations import number, one_of, stored_json, whole
from services.api.status_bodies import (
    Breaker,
    FleetStatus,
    GpuStatus,
    HoldStatus,
    ModelStatus,
    QueueStatus,
    ServiceStatus,
    TargetStatus,
)
from shared.config import Settings
from shared.decision.explain import unprobed_words
from shared.decision.snapshot import Model
from shared.snapshots import snapshot_of
from shared.states import Pressure, Thermal
from shared.store.fleet import HEARTBEAT_TTL_S
from shared.store.records import GpuView, ModelView, ServiceRecord, TargetView, View

_MB_PER_GB = 1024
_STALE_INTERVALS = 3
"""Decision model, section 2: no load is decided on an older sample."""
_THROTTLED = (Thermal.THROTTLING, Thermal.CRITICAL)


def fleet_status(
    view: View, counts: tuple[int, int], services: Sequence[ServiceRecord], settings: Settings
) -> FleetStatus:
    """``counts`` are the jobs that wait and that run."""
    gpus = gpu_statuses(view, settings)
    models = model_statuses(view, settings)
    measured = [gpu for gpu in gpus if gpu.sample_age_ms is not None]
    return FleetStatus(
        gpu=(measured or gpus or [GpuStatus(id=None, detail=nothing_sampled(settings))])[0],
        models=models,
        gpus=gpus,
        queue=QueueStatus(
            waiting=counts[0],
            running=counts[1],
            bound=settings.queue.bound,
            targets={
                target.target: TargetStatus(waiting=target.waiting, hold=_hold(target))
                for target in sorted(view.targets, key=lambda target: target.target)
            },
        ),
        services=[_service(record) for record in services],
        simulated=any(gpu.source == "simulated" for gpu in gpus)
        or any(model.simulated for model in models.values()),
    )


def gpu_statuses(view: View, settings: Settings) -> list[GpuStatus]:
    """Every GPU that was ever sampled, by host and index."""
    return [_gpu(gpu, view.now_ms, settings) for gpu in sorted(view.gpus, key=_gpu_order)]


def model_statuses(view: View, settings: Settings) -> dict[str, ModelStatus]:
    """Every registered model, by name; what waits is known if the view holds the queues."""
    waiting = {target.target: target.waiting for target in view.targets}
    known = snapshot_of(view, settings).models
    return {
        entry.registration.name: _model(entry, known[entry.registration.name], waiting, view.now_ms)
        for entry in sorted(view.models, key=lambda entry: entry.registration.name)
    }


def is_alive(record: ServiceRecord) -> bool:
    return record.age_ms < HEARTBEAT_TTL_S * 1000


def nothing_sampled(settings: Settings) -> str:
    if settings.gpu.source == "none":
        return "gpu.source is none: memory and heat are unknown, routing goes by load alone"
    return "no GPU was sampled yet: is a monitor running, and does it see an NVML driver?"


def _gpu(view: GpuView, now_ms: int, settings: Settings) -> GpuStatus:
    sample, level = view.sample, view.level
    host, _, index = view.id.rpartition("/")
    thermal = one_of(Thermal, level.get("thermal")) or Thermal.UNKNOWN
    sampled_ms = whole(sample, "ts_ms")
    age_ms = None if sampled_ms is None else max(0, now_ms - sampled_ms)
    interval_ms = number(sample, "interval_ms") or settings.gpu.interval_s * 1000
    stale = None if age_ms is None else age_ms > _STALE_INTERVALS * interval_ms
    return GpuStatus(
        id=int(index) if index.isdecimal() else index,
        memory_used_gb=_gigabytes(sample, "memory_used_mb"),
        memory_total_gb=_gigabytes(sample, "memory_total_mb"),
        memory_available_gb=_gigabytes(sample, "memory_free_mb"),
        utilization_percent=_memory_percent(sample),
        temperature_c=number(sample, "temperature_c"),
        power_draw_w=number(sample, "power_draw_w"),
        is_throttled=_throttled(thermal, sample),
        gpu_utilization_percent=number(sample, "gpu_utilization_percent"),
        effective_utilization_percent=_as_percent(number(level, "effective_utilization")) if sample else None,
        pressure=one_of(Pressure, level.get("pressure")) or Pressure.UNKNOWN,
        thermal=thermal,
        name=sample.get("name"),
        uuid=sample.get("uuid"),
        host=host or None,
        gpu=view.id,
        source=sample.get("source"),
        power_limit_w=number(sample, "power_limit_w"),
        fan_percent=number(sample, "fan_percent"),
        in_flight=view.in_flight,
        sample_age_ms=age_ms,
        stale=stale,
        detail=_missing(host, age_ms, bool(stale), whole(level, "read_ms"), now_ms),
    )


def _missing(host: str, age_ms: int | None, stale: bool, read_ms: int | None, now_ms: int) -> str | None:
    if age_ms is None:
        since = "" if read_ms is None else f", {max(0, now_ms - read_ms) / 1000:.0f} s ago"
        return (
            f"no sample: the monitor of {host} is silent; pressure and heat are those of its last one{since}"
        )
    return f"the latest sample is {age_ms} ms old" if stale else None


def _throttled(thermal: Thermal, sample: Mapping[str, str]) -> bool | None:
    if thermal in _THROTTLED or sample.get("thermal_slowdown") == "1":
        return True
    return None if thermal is Thermal.UNKNOWN else False


def _gigabytes(sample: Mapping[str, str], name: str) -> float | None:
    value = number(sample, name)
    return None if value is None else round(value / _MB_PER_GB, 2)


def _memory_percent(sample: Mapping[str, str]) -> float | None:
    used, total = number(sample, "memory_used_mb"), number(sample, "memory_total_mb")
    return _as_percent(used / total) if used is not None and total else None


def _as_percent(share: float | None) -> float | None:
    return None if share is None else round(share * 100, 2)


def _gpu_order(gpu: GpuView) -> tuple[str, int, str]:
    host, _, index = gpu.id.rpartition("/")
    return host, int(index) if index.isdecimal() else 0, index


def _model(view: ModelView, known: Model, waiting: Mapping[str, int], now_ms: int) -> ModelStatus:
    """``known`` is the same model as routing sees it: without what its backend said too long ago."""
    entry, fields = view.registration, view.fields
    probed_ms = whole(fields, "probe_ms")
    saturated_ms = whole(fields, "saturated_until_ms")
    return ModelStatus(
        vram_gb=entry.vram_gb,
        backend=known.backend,
        avg_latency_ms=_rounded(known.avg_latency_ms, 1),
        queue_size=sum(waiting.get(name, 0) for name in entry.served_names) + (known.backend_waiting or 0),
        failure_count=known.failure_count,
        residence=known.residence,
        in_flight=known.in_flight,
        slots=entry.slots or whole(fields, "slots"),
        context_tokens=entry.context_tokens or whole(fields, "context_tokens"),
        url=known.url,
        port=entry.listening_port,
        gpu=fields.get("gpu") or None,
        agent_types=list(entry.agent_types),
        serves=list(entry.served_names),
        simulated=entry.simulated or fields.get("simulated") == "1",
        breaker=_breaker(fields, now_ms),
        saturated_until_ms=saturated_ms if saturated_ms is not None and saturated_ms > now_ms else None,
        backend_running=known.backend_running,
        backend_waiting=known.backend_waiting,
        kv_use=_rounded(known.kv_use, 4),
        samples=known.samples,
        probe_age_ms=None if probed_ms is None else max(0, now_ms - probed_ms),
        probe_error=fields.get("probe_error") or None,
        last_error=fields.get("last_error") or None,
        detail=_unprobed(known),
    )


def _unprobed(model: Model) -> str | None:
    if not model.unprobed:
        return None
    return f"{unprobed_words(model)}; until then it is routed by load and failures alone, after all others"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _breaker(fields: Mapping[str, str], now_ms: int) -> Breaker:
    until_ms = whole(fields, "breaker_open_until_ms")
    if until_ms is None:
        return Breaker(state="closed")
    return Breaker(state="open" if now_ms < until_ms else "half_open", open_until_ms=until_ms)


def _hold(target: TargetView) -> HoldStatus | None:
    held = stored_json(target.hold)
    if not isinstance(held, dict):
        return None
    since_ms = held.get("since_ms")
    return HoldStatus(
        code=str(held.get("code", "")),
        reason=str(held.get("reason", "")),
        since_ms=round(since_ms) if isinstance(since_ms, int | float) else None,
    )


def _service(record: ServiceRecord) -> ServiceStatus:
    return ServiceStatus(
        instance=record.instance,
        service=record.service,
        version=record.version,
        address=record.address,
        age_ms=record.age_ms,
        alive=is_alive(record),
    )
