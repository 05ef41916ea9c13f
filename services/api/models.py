"""Registered models as the registry's calls answer them, and the reading of what they are sent."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue, ValidationError
from pydantic_core import from_json

from services.api.model_bodies import FILE_ONLY, LastBenchmark, Learned, ModelDetail
from services.api.problems import MALFORMED, Problem
from services.api.representations import number, whole
from services.api.status import model_statuses
from services.api.status_bodies import ModelStatus
from shared.config import Settings
from shared.decision.snapshot import Model
from shared.errors import InvalidRequest
from shared.registry import Registration
from shared.snapshots import snapshot_of
from shared.store.records import ModelView, View


def model_details(view: View, settings: Settings) -> dict[str, ModelDetail]:
    """Every registered model, by name."""
    statuses, known = model_statuses(view, settings), snapshot_of(view, settings).models
    entries = {entry.registration.name: entry for entry in view.models}
    return {name: _detail(entries[name], status, known[name]) for name, status in statuses.items()}


def parse_registration(body: bytes, name: str | None) -> Registration:
    """The registration that a body asks for; ``name`` is that of the path, which the body may leave out.

    Raises ``Problem`` (400) or ``InvalidRequest`` (422) naming the field.
    """
    try:
        data: JsonValue = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(MALFORMED, f"the body is not JSON that can be read: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequest("", 'the body must be a JSON object such as {"name": "qwen", "port": 8082}')
    if name is not None and data.setdefault("name", name) != name:
        raise InvalidRequest("name", f"is not that of the path, {name!r}: leave it out, or use its own path")
    if data.setdefault("source", "http") != "http":
        raise InvalidRequest("source", "is 'http' for what is registered here: leave it out")
    for field in FILE_ONLY:
        if data.get(field) is not None:
            raise InvalidRequest(field, "can only be given in the configuration file: leave it out")
    try:
        return Registration.model_validate(data)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    item = error.errors()[0]
    # Of a field of several types pydantic names the type that it tried: no part of the caller's path.
    field, *below = item["loc"] or ("",)
    path = ".".join([str(field), *(str(step) for step in below if isinstance(step, int))])
    if item["type"] == "extra_forbidden":
        return InvalidRequest(
            path, f"is not a field of a model; known: {', '.join(Registration.model_fields)}"
        )
    return InvalidRequest(path, str(item["msg"]).removeprefix("Value error, "))


def _detail(view: ModelView, status: ModelStatus, known: Model) -> ModelDetail:
    entry = view.registration
    values = {name: getattr(status, name) for name in ModelStatus.model_fields}
    return ModelDetail(
        **values,
        name=entry.name,
        source=entry.source,
        registration=entry,
        learned=Learned(
            samples=known.samples,
            avg_latency_ms=_rounded(known.avg_latency_ms),
            tokens_per_second=_rounded(_per_second(known.seconds_per_output_token)),
            prefill_tokens_per_second=_rounded(_per_second(known.seconds_per_prompt_token)),
            avg_output_tokens=_rounded(known.avg_output_tokens),
            failure_share=round(known.failure_ema, 4),
            requests_per_minute=round((known.rate_10min or 0.0) * 60, 2),
        ),
        benchmark=_benchmark(view.fields),
    )


def _benchmark(fields: Mapping[str, str]) -> LastBenchmark | None:
    benchmark_id = fields.get("benchmark_id")
    if not benchmark_id:
        return None
    return LastBenchmark(
        benchmark_id=benchmark_id,
        at_ms=whole(fields, "benchmark_ms"),
        requests=whole(fields, "benchmark_requests"),
        concurrency=whole(fields, "benchmark_concurrency"),
        ttft_ms=number(fields, "benchmark_ttft_p50_ms"),
        latency_ms=number(fields, "benchmark_latency_p50_ms"),
        prefill_tokens_per_second=number(fields, "benchmark_prefill_tokens_per_second"),
        decode_tokens_per_second=number(fields, "benchmark_decode_tokens_per_second"),
    )


def _per_second(seconds: float | None) -> float | None:
    return 1 / seconds if seconds is not None and seconds > 0 else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
