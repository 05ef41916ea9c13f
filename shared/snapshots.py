"""The decision core's picture of the fleet, built from one view of Redis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from shared.config import GpuOverride, Settings
from shared.decision.demand import serves_target
from shared.decision.snapshot import Backlog, Gpu, Model, Request, Rules, Snapshot
from shared.registry import Registration
from shared.states import BackendType, Mode, Pressure, Residence, Thermal
from shared.store.records import GpuView, Head, ModelView, TargetView, View

_FAILURE_HALF_LIFE_MS = 60_000
"""As in common.lua, which stores the failure average; readers let it fade further."""
_MODES = frozenset(Mode)
_PROBE_STALE_INTERVALS = 5
_PROBE_STALE_LEAST_MS = 10_000
_FEW_DIGITS = 15
"""Fewer are told alike as an integer and by way of a float."""
_RATE_SPANS_S = {"rate_10min": 600.0, "rate_6h": 21_600.0}
"""As in common.lua, which counts arrivals; readers let them fade further."""


def rules_of(settings: Settings) -> Rules:
    """The configurable numbers of the decision model."""
    return Rules(
        memory=settings.memory_thresholds,
        thermal=settings.thermal_thresholds,
        reserve_gb=settings.gpu.reserve_gb,
    )


def probe_stale_ms(interval_ms: float) -> float:
    """How old a probe may be and still say something of now, where one is made every so many ms."""
    return max(_PROBE_STALE_LEAST_MS, _PROBE_STALE_INTERVALS * interval_ms)


def snapshot_of(view: View, settings: Settings) -> Snapshot:
    """What is known now; whatever is missing or unreadable stays unknown."""
    gpus = {gpu.id: _gpu(gpu, view.now_ms, settings) for gpu in view.gpus}
    cards = {gpu.id: gpu.sample for gpu in view.gpus}
    stale_ms = probe_stale_ms(settings.gpu.interval_s * 1000)
    host = settings.backends.host
    models = {
        entry.registration.name: _with_history(
            _model(entry, view.now_ms, stale_ms, host, gpus), entry, view.now_ms, cards
        )
        for entry in view.models
    }
    backlogs = tuple(_backlog(target, models.values(), view.now_ms) for target in view.targets)
    return Snapshot(models=models, gpus=gpus, rules=rules_of(settings), backlogs=backlogs)


def request_of(head: Head, now_ms: int) -> Request:
    """A waiting job as the core sees it."""
    fields = head.fields
    mode = fields.get("mode", "")
    deadline = _number(fields, "deadline_ms")
    return Request(
        model=fields.get("model") or None,
        agent_type=fields.get("agent_type") or None,
        prompt_tokens=_count(fields, "prompt_tokens", 1),
        max_tokens=_count(fields, "max_tokens", 512),
        min_context_tokens=_count(fields, "min_context_tokens", 0),
        prefer_llama_cpp=fields.get("prefer_llama_cpp") == "1",
        priority=_count(fields, "priority", 5),
        mode=Mode(mode) if mode in _MODES else None,
        fallback=fields.get("fallback") == "1",
        deadline_in_ms=None if deadline is None else deadline - now_ms,
    )


def _backlog(view: TargetView, models: Iterable[Model], now_ms: int) -> Backlog:
    """The oldest age is that of the first jobs that the view shows."""
    submitted = [_number(head.fields, "submitted_ms") for head in view.heads]
    ages = [max(0.0, now_ms - at) / 1000 for at in submitted if at is not None]
    serving = [
        model
        for model in models
        if model.residence is Residence.RESIDENT and serves_target(model, view.target)
    ]
    # How fast the queue drains, where it is known of all that serve it.
    learned = [(model.slots, model.avg_latency_ms or 0.0) for model in serving]
    rates = [max(1, slots) * 1000 / latency_ms for slots, latency_ms in learned if latency_ms > 0]
    known = bool(serving) and len(rates) == len(serving)
    return Backlog(
        target=view.target,
        waiting=view.waiting,
        head_age_s=max(ages, default=None),
        expected_wait_s=view.waiting / sum(rates) if known else None,
    )


def _gpu(view: GpuView, now_ms: int, settings: Settings) -> Gpu:
    sample, level = view.sample, view.level
    ts_ms = _number(sample, "ts_ms")
    return Gpu(
        id=view.id,
        pressure=_one_of(Pressure, level.get("pressure"), Pressure.UNKNOWN),
        full=level.get("full") == "1",
        thermal=_one_of(Thermal, level.get("thermal"), Thermal.UNKNOWN),
        level_seq=_count(level, "seq", 0),
        effective_utilization=_number(sample, "effective_utilization"),
        memory_total_mb=_number(sample, "memory_total_mb"),
        memory_used_mb=_number(sample, "memory_used_mb"),
        temperature_c=_number(sample, "temperature_c"),
        power_draw_w=_number(sample, "power_draw_w"),
        sample_age_ms=None if ts_ms is None else max(0.0, now_ms - ts_ms),
        in_flight=view.in_flight,
        interval_ms=_number(sample, "interval_ms") or settings.gpu.interval_s * 1000,
        reserve_gb=_reserve_gb(settings.gpus, view.id, sample),
        managed_mb=_number(sample, "managed_mb"),
        level_age_ms=None if (read_ms := _number(level, "read_ms")) is None else max(0.0, now_ms - read_ms),
    )


def _reserve_gb(overrides: Iterable[GpuOverride], gpu_id: str, sample: Mapping[str, str]) -> float | None:
    """What the configuration says of this card, by UUID, index or ``<host>/<index>``; the last one counts."""
    found = [one.reserve_gb for one in overrides if _is_card(one.id, gpu_id, sample)]
    return next((reserve for reserve in reversed(found) if reserve is not None), None)


def _is_card(named: str | int, gpu_id: str, sample: Mapping[str, str]) -> bool:
    name = str(named).lower()
    return name in (gpu_id.lower(), gpu_id.rpartition("/")[2], sample.get("uuid", "").lower())


def _model(
    view: ModelView, now_ms: int, stale_ms: float, backends_host: str, gpus: Mapping[str, Gpu]
) -> Model:
    entry, fields = view.registration, view.fields
    probe_ms = _number(fields, "probe_ms")
    # A probe from long ago says nothing of now; the breaker protects what is tried in spite of it.
    probe = fields if probe_ms is not None and now_ms - probe_ms <= stale_ms else {}
    open_until = _number(fields, "breaker_open_until_ms")
    unprobed, unprobed_ms = _unprobed(fields, now_ms, stale_ms)
    return Model(
        name=entry.name,
        backend=entry.backend or discovered_kind(fields) or BackendType.LLAMA_CPP,
        url=entry.base_url(backends_host),
        port=entry.listening_port,
        upstream_name=entry.upstream_name or fields.get("upstream_name") or entry.name,
        serves=entry.served_names,
        agent_types=entry.agent_types,
        vram_gb=entry.vram_gb,
        tokens_per_second=entry.tokens_per_second,
        pin=entry.pin,
        context_tokens=entry.context_tokens or _count(fields, "context_tokens", 2048),
        # A server that is up and doesn't say has 2,048; one that is down may have any.
        context_known=bool(entry.context_tokens or fields.get("context_tokens"))
        or fields.get("residence") == Residence.RESIDENT,
        slots=entry.slots or _count(fields, "slots", 1),
        gpus=_placed_on(entry, fields, gpus),
        residence=_one_of(Residence, probe.get("residence"), Residence.UNKNOWN),
        in_flight=_count(fields, "in_flight", 0),
        backend_running=_whole(probe, "backend_running"),
        backend_waiting=_whole(probe, "backend_waiting"),
        probe_in_flight=_whole(probe, "probe_in_flight"),
        kv_use=_number(probe, "kv_use"),
        samples=_count(fields, "samples", 0),
        avg_latency_ms=_number(fields, "avg_latency_ms"),
        seconds_per_prompt_token=_number(fields, "seconds_per_prompt_token"),
        seconds_per_output_token=_number(fields, "seconds_per_output_token"),
        avg_output_tokens=_number(fields, "avg_output_tokens"),
        failure_count=_count(fields, "failure_count", 0),
        failure_ema=_faded(fields, now_ms),
        breaker_open_for_ms=0.0 if open_until is None else max(0.0, open_until - now_ms),
        breaker_half_open=open_until is not None and open_until <= now_ms,
        saturated_for_ms=max(0.0, (_number(fields, "saturated_until_ms") or 0.0) - now_ms),
        name_unknown_for_ms=max(0.0, (_number(fields, "name_unknown_until_ms") or 0.0) - now_ms),
        host=entry.host,
        unprobed=unprobed,
        unprobed_ms=unprobed_ms,
    )


def discovered_kind(fields: Mapping[str, str]) -> BackendType | None:
    """The kind of server that its monitor found; None: nobody knows (yet)."""
    raw = fields.get("backend")
    return BackendType(raw) if raw in tuple(BackendType) else None


def _unprobed(fields: Mapping[str, str], now_ms: int, stale_ms: float) -> tuple[bool, float | None]:
    """Whether no monitor looks at a model, and for how long none has.

    One that was registered a moment ago gets the time that a probe may be old.
    """
    known = [at for name in ("probe_ms", "registered_ms") if (at := _number(fields, name)) is not None]
    if not known:
        return True, None
    since_ms = max(0.0, now_ms - max(known))
    return since_ms > stale_ms, since_ms if since_ms > stale_ms else None


def _with_history(
    model: Model, view: ModelView, now_ms: int, cards: Mapping[str, Mapping[str, str]]
) -> Model:
    """The model with what decides on its loading: use, size, time to load, and where it may go."""
    fields = view.fields
    return replace(
        model,
        loadable_on=_loadable_on(view.registration, fields, cards),
        rate_10min=_rate(fields, "rate_10min", now_ms),
        rate_6h=_rate(fields, "rate_6h", now_ms),
        idle_s=_since_s(fields, "last_used_ms", now_ms),
        ttl_s=view.registration.ttl_s,
        footprint_mb=_number(fields, "footprint_mb"),
        footprint_error_mb=_number(fields, "footprint_error_mb"),
        load_seconds=_number(fields, "load_seconds"),
        loaded_ago_s=_since_s(fields, "loaded_ms", now_ms),
        load_gain=_number(fields, "load_gain"),
    )


def _loadable_on(
    entry: Registration, fields: Mapping[str, str], cards: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...]:
    """The card that its registration names, else every card of the host where its monitor sees it."""
    host = entry.host or fields.get("host")
    # A server elsewhere, given by URL alone, is on none of the cards that its prober reads.
    here = entry.host is not None or entry.url is None or fields.get("gpu", "") in cards
    local = [gpu for gpu in sorted(cards) if here and host in (None, gpu.rpartition("/")[0])]
    if entry.gpu is not None:
        return tuple(gpu for gpu in local if _is_card(entry.gpu, gpu, cards[gpu]))
    return tuple(local)


def _rate(fields: Mapping[str, str], name: str, now_ms: int) -> float | None:
    rate, since_s = _number(fields, name), _since_s(fields, "rate_ms", now_ms)
    return None if rate is None or since_s is None else rate * math.exp(-since_s / _RATE_SPANS_S[name])


def _since_s(fields: Mapping[str, str], name: str, now_ms: int) -> float | None:
    at = _number(fields, name)
    return None if at is None else max(0.0, now_ms - at) / 1000


def _placed_on(entry: Registration, fields: Mapping[str, str], gpus: Mapping[str, Gpu]) -> tuple[str, ...]:
    """Where its monitor saw it; before the first probe, every card that it may be on.

    Without that guess a model registered a moment ago would be routed past a card's critical level: of
    several GPUs a model takes the worst.
    """
    if "probe_ms" in fields:
        return tuple(gpu for gpu in fields.get("gpu", "").split(",") if gpu in gpus)
    return tuple(sorted(gpu for gpu in gpus if entry.host in (None, gpu.rpartition("/")[0])))


def _faded(fields: Mapping[str, str], now_ms: int) -> float:
    ema = _number(fields, "failure_ema") or 0.0
    since_ms = max(0.0, now_ms - (_number(fields, "failure_ema_ms") or now_ms))
    return float(min(1.0, max(0.0, ema * 2 ** (-since_ms / _FAILURE_HALF_LIFE_MS))))


def _number(fields: Mapping[str, str], name: str) -> float | None:
    raw = fields.get(name)
    if not raw:
        return None
    try:
        value = float(raw)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _whole(fields: Mapping[str, str], name: str) -> int | None:
    value = _number(fields, name)
    return None if value is None else int(value)


def _count(fields: Mapping[str, str], name: str, default: int) -> int:
    raw = fields.get(name)
    if raw and len(raw) < _FEW_DIGITS and raw.isdecimal():
        return int(raw)  # as nearly all are written
    value = _whole(fields, name)
    return default if value is None else value


_Level = TypeVar("_Level", Pressure, Thermal, Residence)


def _one_of(kind: type[_Level], raw: str | None, default: _Level) -> _Level:
    return kind(raw) if raw in tuple(kind) else default
