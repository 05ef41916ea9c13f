"""A job as the api answers it, built from its stored record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import from_json

from shared.states import FINAL_STATES, Action, BackendType, JobState
from shared.store.records import JobRecord

_HEADER_CHARS = 500
_WHOLE = {"type": "integer", "minimum": 0}
DECISION_HEADERS: dict[str, dict[str, Any]] = {
    "x-orchestrator-job-id": {"description": "The job", "required": True, "schema": {"type": "string"}},
    "x-orchestrator-overhead-ms": {
        "description": "Time spent on the request in the api, without waiting for the job",
        "required": True,
        "schema": {"type": "number", "minimum": 0},
    },
    "x-orchestrator-reason": {"description": "Of the latest decision", "schema": {"type": "string"}},
    "x-orchestrator-model": {"description": "The registration that was chosen", "schema": {"type": "string"}},
    "x-orchestrator-backend": {
        "description": "Of that model",
        "schema": {"type": "string", "enum": [kind.value for kind in BackendType]},
    },
    "x-orchestrator-queue-ms": {"description": "From submission to the latest attempt", "schema": _WHOLE},
}
"""The declaration of what ``decision_headers`` gives, for OpenAPI."""
_Value = TypeVar("_Value", bound=StrEnum)


def location(description: str) -> dict[str, dict[str, Any]]:
    """The declaration of a ``Location`` header, for OpenAPI."""
    schema = {"type": "string", "pattern": "^/"}
    return {"Location": {"description": description, "required": True, "schema": schema}}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Decision(Body):
    """The latest decision about a job; while its queue is held, the reason of that hold."""

    action: Action
    model: str | None = None
    backend: BackendType | None = None
    port: int | None = None
    url: str | None = None
    gpu: str | None = Field(default=None, description="`host/index`, several joined by commas")
    reason: str
    code: str
    estimated_duration_ms: float | None = None


class Timings(Body):
    """In ms, null until known."""

    queued_ms: int | None = Field(description="From submission to the start of the latest attempt")
    first_token_ms: float | None = Field(description="From the start of the latest attempt")
    running_ms: int | None = Field(description="Of the latest attempt, once the job has ended")
    total_ms: int | None = Field(description="From submission to the end")


class Result(Body):
    text: str | None
    finish_reason: str | None
    usage: JsonValue
    response: JsonValue = Field(description="The backend's whole answer")
    truncated: bool = Field(description="Whether it was cut at `jobs.max_result_bytes`")


class JobError(Body):
    type: str
    detail: str


class Job(Body):
    """A job; times ending in `_ms` without a span are ms since 1970 on the clock of Redis."""

    job_id: str
    state: JobState
    agent_type: str | None
    model: str | None = Field(description="The model that was asked for, null for any")
    priority: int | None
    submitted_ms: int | None
    deadline_ms: int | None
    attempt: int
    tries: Annotated[int, Field(description="Attempts that count against max_attempts")]
    decision: Decision | None
    position: int | None = Field(description="Place in its queue, 1 is next; null unless it waits there")
    timings: Timings
    result: Result | None = Field(description="Left out (null) in lists")
    error: JobError | None
    metadata: dict[str, JsonValue] | None
    request_id: str | None = Field(description="Of the request that it came with (`X-Request-ID`)")


class JobList(Body):
    jobs: list[Job]


def job_of(record: JobRecord) -> Job:
    """The job as it stands; a stored value that can't be read is null, never an error."""
    fields = record.fields
    metadata = stored_json(fields.get("metadata", ""))
    return Job(
        job_id=record.job_id,
        state=record.state,
        agent_type=fields.get("agent_type") or None,
        model=fields.get("model") or None,
        priority=whole(fields, "priority"),
        submitted_ms=whole(fields, "submitted_ms"),
        deadline_ms=whole(fields, "deadline_ms"),
        attempt=whole(fields, "attempt") or 0,
        tries=whole(fields, "tries") or 0,
        decision=_decision(record),
        position=record.position,
        timings=_timings(record),
        result=_result(record.result),
        error=_error(record),
        metadata=metadata if isinstance(metadata, dict) else None,
        request_id=fields.get("request_id") or None,
    )


def decision_headers(job: Job, overhead_ms: float) -> dict[str, str]:
    """What a reader of headers learns: the job, the decision behind the answer, the waits.

    ``overhead_ms`` is the time that this api spent on the request, without waiting for the job.
    """
    headers = {"x-orchestrator-job-id": job.job_id, "x-orchestrator-overhead-ms": f"{overhead_ms:.1f}"}
    decision = job.decision
    if decision is None:
        return headers
    headers["x-orchestrator-reason"] = ascii_line(decision.reason)
    if decision.model is not None:
        headers["x-orchestrator-model"] = ascii_line(decision.model)
    if decision.backend is not None:
        headers["x-orchestrator-backend"] = decision.backend.value
    if job.timings.queued_ms is not None:
        headers["x-orchestrator-queue-ms"] = str(job.timings.queued_ms)
    return headers


def ascii_line(text: str) -> str:
    """A text as a header may carry it: one line of printable ASCII, of bounded length."""
    shown = (char if " " <= char <= "~" else " " if char.isspace() else "?" for char in text[:_HEADER_CHARS])
    return "".join(shown).strip()


def number(fields: Mapping[str, str], name: str) -> float | None:
    """A stored number, None where it is missing or no finite number."""
    stored = fields.get(name)
    if not stored:
        return None
    try:
        value = float(stored)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def whole(fields: Mapping[str, str], name: str) -> int | None:
    """A stored number, rounded."""
    value = number(fields, name)
    return None if value is None else round(value)


def one_of(kind: type[_Value], raw: str | None) -> _Value | None:
    """A stored name, None where it is none of its kind."""
    return kind(raw) if raw is not None and raw in tuple(kind) else None


def stored_json(raw: str) -> JsonValue:
    """Stored JSON as an answer can carry it; None for what is none.

    Backends cut emojis in two: what Python writes for half of one is refused by strict readers.
    """
    if not raw:
        return None
    try:
        return _strict(raw)
    except ValueError:
        pass
    try:
        return _strict(json.dumps(json.loads(raw), ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def _strict(raw: str | bytes) -> JsonValue:
    value: JsonValue = from_json(raw)
    return value


def _decision(record: JobRecord) -> Decision | None:
    if record.state is JobState.QUEUED:
        hold = _hold(record)
        if hold is not None:
            return hold
    fields = record.fields
    action = one_of(Action, fields.get("decision_action"))
    if action is None:
        return _own_hold(fields)
    return Decision(
        action=action,
        model=fields.get("decision_model") or None,
        backend=one_of(BackendType, fields.get("decision_backend")),
        port=whole(fields, "decision_port"),
        url=fields.get("decision_url") or None,
        gpu=fields.get("decision_gpu") or None,
        reason=fields.get("decision_reason", ""),
        code=fields.get("decision_code", ""),
        estimated_duration_ms=number(fields, "decision_estimated_duration_ms"),
    )


def _hold(record: JobRecord) -> Decision | None:
    # A job in the retry line waits for its time, whatever its queue waits for.
    held = stored_json(record.hold) if record.position is not None else None
    if isinstance(held, dict):
        return Decision(
            action=Action.HOLD, reason=str(held.get("reason", "")), code=str(held.get("code", ""))
        )
    return _own_hold(record.fields)


def _own_hold(fields: Mapping[str, str]) -> Decision | None:
    """Why it waited when it was the first of its queue, also after it ended there."""
    code = fields.get("hold_code")
    return Decision(action=Action.HOLD, reason=fields.get("hold_reason", ""), code=code) if code else None


def _timings(record: JobRecord) -> Timings:
    fields = record.fields
    submitted, finished = whole(fields, "submitted_ms"), whole(fields, "finished_ms")
    started = None if _went_back(record) else whole(fields, "started_ms")
    ended = finished if record.state in FINAL_STATES else None
    return Timings(
        queued_ms=_span(submitted, ended if started is None else started),
        first_token_ms=number(fields, "first_token_ms"),
        running_ms=_span(started, ended),
        total_ms=_span(submitted, ended),
    )


def _went_back(record: JobRecord) -> bool:
    """Whether it is in the queue again, or ended there: its latest attempt ended some time before."""
    fields = record.fields
    handed_back = fields.get("settled") == fields.get("attempt") and fields.get("settled_as") == "QUEUED"
    return record.state is JobState.QUEUED or handed_back


def _span(start: int | None, end: int | None) -> int | None:
    return None if start is None or end is None else max(0, end - start)


def _result(raw: str | None) -> Result | None:
    stored = stored_json(raw or "")
    if not isinstance(stored, dict):
        return None
    text, finish_reason = stored.get("text"), stored.get("finish_reason")
    return Result(
        text=text if isinstance(text, str) else None,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        usage=stored.get("usage"),
        response=stored.get("response"),
        truncated=stored.get("truncated") is True,
    )


def _error(record: JobRecord) -> JobError | None:
    # What went wrong in an earlier attempt is history; it is the job's error only if the job ended by it.
    if record.state not in FINAL_STATES or record.state is JobState.SUCCEEDED:
        return None
    return JobError(
        type=record.fields.get("error_type") or record.state.value,
        detail=record.fields.get("error_detail", ""),
    )
