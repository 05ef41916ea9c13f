"""What an attached job's end means for its record: failures by cause, and what a success taught."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import JsonValue

from services.api.gateway import refusals
from services.api.gateway.pieces import last_object
from services.api.gateway.refusals import Refusal
from shared import outcomes
from shared.backends.completion import Completion
from shared.backends.errors import BackendError
from shared.store.records import FailKind, Failure, ModelFailure
from shared.store.scripts import encoded


class Cut(StrEnum):
    """Why a request is ended before its answer is."""

    GONE = "its client left"
    STALLED = "its client reads nothing any more"
    CANCELLED = "it was cancelled"
    DEADLINE = "its deadline passed"
    STOPPING = "its api stops"
    LOST = "the job is not known any more: Redis lost its data"
    ENDED = "the job ended elsewhere"


SILENT = frozenset({Cut.GONE, Cut.STALLED})
"""Nobody is there to be told."""


def failure_of_cut(cut: Cut) -> Failure:
    """How the running attempt of a request that was cut is recorded."""
    if cut is Cut.CANCELLED:
        return outcomes.CANCELLED
    if cut is Cut.DEADLINE:
        return outcomes.EXPIRED
    if cut in SILENT:
        return Failure(FailKind.CANCELLED, "client_left", str(cut))
    return Failure(FailKind.FAILED, "api_stopped", str(cut))


def refusal_of_cut(cut: Cut) -> Refusal:
    """What the client of a request that was cut is told."""
    if cut is Cut.CANCELLED:
        return refusals.cancelled("the job was cancelled")
    if cut is Cut.DEADLINE:
        return refusals.deadline_passed("its deadline passed")
    if cut is Cut.STOPPING:
        return refusals.stopping()
    return Refusal(503, "job_lost", f"{cut}: try again", again_s=refusals.AGAIN_S)


def broken_off(error: BackendError) -> Failure:
    """A backend that failed after the client had got part of its answer: nobody can try again for it."""
    return Failure(
        FailKind.FAILED,
        error.type,
        error.detail or str(error),
        charge=True,
        model_failure=ModelFailure.FAILED,
    )


def measured(tail: bytes, first_byte_ms: float | None, total_ms: float) -> Completion:
    """What the end of a relayed answer tells of it; its text is not looked at."""
    usage, timings = dict(last_object(tail, "usage")), last_object(tail, "timings")
    return Completion(
        text="",
        finish_reason=None,
        usage=usage or None,
        response={},
        first_token_ms=first_byte_ms,
        total_ms=total_ms,
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        # llama.cpp counts for everybody, but tells its usage only to clients that ask for it.
        output_tokens=_count(usage, "completion_tokens", "output_tokens") or _count(timings, "predicted_n"),
        prompt_ms=_number(timings.get("prompt_ms")),
        prompt_processed=_count(timings, "prompt_n"),
        output_ms=_number(timings.get("predicted_ms")),
        truncated=False,
    )


def result_of(completion: Completion) -> str:
    """The stored result: what was said stays between the backend and the client."""
    return encoded(
        {
            "text": None,
            "finish_reason": completion.finish_reason,
            "usage": completion.usage,
            "response": None,
            "truncated": False,
        }
    ).decode()


def _count(values: Mapping[str, JsonValue], *names: str) -> int | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
