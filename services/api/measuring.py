"""What a benchmark's finished jobs say: figures of each, and their spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from services.api.benchmark_bodies import Figures, Spread
from services.api.representations import JobError, number, stored_json
from shared.states import JobState
from shared.store.records import JobRecord

UNSERVED = "unserved"
"""Started at least once and handed back (a refused connection, a saturated backend) until time was up."""
_MOST = 1e15
"""Figures beyond are none: a backend may say anything."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One request; None = not told. ``error`` None = it succeeded."""

    model: str
    submitted_ms: float
    finished_ms: float
    error: str | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    prefill: float | None = None
    decode: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0


def measured(record: JobRecord) -> Measured | None:
    """What a job of ours measured; None for one that was never dispatched: it tells nothing."""
    fields = record.fields
    model = fields.get("decision_model", "")
    submitted = number(fields, "submitted_ms") or 0.0
    finished = number(fields, "finished_ms") or submitted
    if record.state is JobState.CANCELLED:
        if not (number(fields, "tries") or number(fields, "settled")):
            return None
        return Measured(model, submitted, finished, error=fields.get("error_type") or UNSERVED)
    if record.state is not JobState.SUCCEEDED:
        return Measured(model, submitted, finished, error=fields.get("error_type") or record.state.value)
    started = number(fields, "started_ms")
    first = number(fields, "first_token_ms")
    answer = _object(stored_json(record.result or ""))
    usage, timings = _object(answer.get("usage")), _object(_object(answer.get("response")).get("timings"))
    prompt, output = _amount(usage.get("prompt_tokens")), _amount(usage.get("completion_tokens"))
    after = None if started is None or first is None else finished - started - first
    return Measured(
        model,
        submitted,
        finished,
        queue_ms=None if started is None else started - submitted,
        ttft_ms=first,
        prefill=_speed(_amount(timings.get("prompt_n")), _amount(timings.get("prompt_ms")))
        or _speed(prompt, first),
        decode=_decode(timings, output, after),
        prompt_tokens=round(prompt or 0),
        output_tokens=round(output or 0),
    )


def _decode(timings: Mapping[str, JsonValue], output: float | None, after_ms: float | None) -> float | None:
    """Output tokens a second; None for a single token, which has no interval."""
    if output is None or output < 2:
        return None
    told = _speed(_amount(timings.get("predicted_n")), _amount(timings.get("predicted_ms")))
    return told or _speed(output - 1, after_ms)


def figures(results: Sequence[Measured]) -> Figures:
    """The figures of all requests together."""
    good = [one for one in results if one.error is None]
    output = sum(one.output_tokens for one in good)
    span_ms = max((one.finished_ms for one in good), default=0.0) - min(
        (one.submitted_ms for one in good), default=0.0
    )
    return Figures(
        requests=len(results),
        succeeded=len(good),
        errors=dict(Counter(one.error for one in results if one.error is not None)),
        ttft_ms=spread(one.ttft_ms for one in good),
        prefill_tokens_per_second=spread(one.prefill for one in good),
        decode_tokens_per_second=spread(one.decode for one in good),
        latency_ms=spread(one.finished_ms - one.submitted_ms for one in good),
        queue_wait_ms=spread(one.queue_ms for one in good),
        output_tokens_per_second=_rounded(_speed(float(output), span_ms)),
        prompt_tokens=sum(one.prompt_tokens for one in good),
        output_tokens=output,
        served_by=dict(Counter(one.model for one in good)),
    )


def learned(found: Figures, benchmark_id: str, concurrency: int) -> dict[str, str]:
    """The fields of the model's hash that keep what was measured."""
    spreads = {
        "benchmark_ttft_p50_ms": found.ttft_ms,
        "benchmark_latency_p50_ms": found.latency_ms,
        "benchmark_prefill_tokens_per_second": found.prefill_tokens_per_second,
        "benchmark_decode_tokens_per_second": found.decode_tokens_per_second,
    }
    return {
        "benchmark_id": benchmark_id,
        "benchmark_requests": str(found.succeeded),
        "benchmark_concurrency": str(concurrency),
        **{name: "" if value is None else f"{value.p50:.10g}" for name, value in spreads.items()},
    }


def verdict(found: Figures) -> tuple[JobState, JobError | None]:
    """How a benchmark that was not stopped has ended."""
    if found.succeeded:
        return JobState.SUCCEEDED, None
    if found.errors:
        kinds = ", ".join(f"{kind} ({number})" for kind, number in sorted(found.errors.items()))
        return JobState.FAILED, JobError(type="all_failed", detail=f"no request succeeded: {kinds}")
    why = found.ended_early or "none was dispatched in time: the model was busy with, or held for, others"
    return JobState.FAILED, JobError(type="nothing_measured", detail=why)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Percentiles by nearest rank, so that each is a value that was measured; None without any."""
    known = sorted(value for value in values if value is not None and math.isfinite(value))
    if not known:
        return None
    p50, p90, p99 = (known[math.ceil(share * len(known)) - 1] for share in (0.5, 0.9, 0.99))
    mean = math.fsum(known) / len(known)
    return Spread(p50=round(p50, 2), p90=round(p90, 2), p99=round(p99, 2), mean=round(mean, 2))


def _speed(tokens: float | None, ms: float | None) -> float | None:
    """Tokens a second, None where it can't be told: a time below the resolution of the clock is no speed."""
    if tokens is None or ms is None or tokens <= 0 or ms <= 0:
        return None
    return tokens / ms * 1000


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _object(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _amount(value: JsonValue) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:
        return None
    return float(value)
