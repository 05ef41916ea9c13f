"""The canonical lines of the log about jobs: one for each decision, one for each dispatch that is over."""

from __future__ import annotations

from collections.abc import Sequence

from shared import log
from shared.backends.completion import Completion
from shared.decision.snapshot import Decision
from shared.store.records import Failure

_GOOD = frozenset({"succeeded", "queued", "cancelled", "lease_lost", "stale"})
"""Outcomes that are no loss: the job has its end, or goes on, here or elsewhere."""


def log_decision(
    decision: Decision,
    job_id: str,
    request_id: str | None,
    *,
    level: log.Level = "INFO",
    attempt: int | None = None,
    target: str | None = None,
    waiting: int | None = None,
) -> None:
    """A decision that was carried out; of a hold the queue (``target``) and how many wait in it."""
    if not log.shows(level):
        return
    model = decision.model
    log.event(
        "decision",
        level,
        action=decision.action.value,
        job=job_id,
        request=request_id,
        attempt=attempt,
        target=target,
        waiting=waiting,
        model=None if model is None else model.name,
        backend=None if model is None else model.backend.value,
        gpu=None if model is None else shown_gpus(model.gpus),
        code=decision.code,
        reason=decision.reason,
    )


def log_dispatch(
    job_id: str,
    request_id: str,
    attempt: int,
    model: str,
    gpu: str,
    outcome: str,
    told: Completion | Failure | None,
    *,
    queue_ms: float | None,
    total_ms: float,
    code: str | None = None,
    reason: str | None = None,
) -> None:
    """A dispatch that is over and recorded.

    ``outcome`` is what became of the job by it. ``queue_ms`` is how long the job had waited before,
    ``total_ms`` what the backend, the way there and the record took; ``code`` and ``reason`` are those of the
    decision.
    """
    failure = told if isinstance(told, Failure) else None
    completion = told if isinstance(told, Completion) else None
    log.event(
        "dispatch",
        "INFO" if outcome in _GOOD else "WARNING",
        job=job_id,
        request=request_id,
        attempt=attempt,
        model=model,
        gpu=gpu,
        outcome=outcome,
        queue_ms=queue_ms,
        first_token_ms=None if completion is None else completion.first_token_ms,
        total_ms=total_ms,
        tokens=None if completion is None else completion.output_tokens,
        error=None if failure is None else failure.error_type,
        detail=None if failure is None else failure.detail,
        code=code,
        reason=reason,
    )


def shown_gpus(gpus: Sequence[str]) -> str:
    """Where a model runs, as it stands in a line."""
    return ",".join(gpus) or "unknown"
