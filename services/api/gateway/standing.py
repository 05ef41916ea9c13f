"""What a client learns of its request besides the answer: the decision behind it, and how it stands."""

from __future__ import annotations

from services.api.gateway.client import Headers
from services.api.gateway.lines import Line
from services.api.gateway.outcomes import Cut
from services.api.representations import ascii_line, job_of
from shared.errors import StoreUnavailable
from shared.states import FINAL_STATES, Action
from shared.store.grants import Ended, Grant
from shared.store.jobs import JobStore
from shared.store.records import JobRecord

_PLAIN_CHARS = 400
"""Below the length at which ``ascii_line`` cuts."""


def decision_headers(grant: Grant, *, queued_s: float, overhead_s: float) -> Headers:
    """The headers of an answer that a decision stands behind; those of ``POST /v1/jobs`` mean the same."""
    return [
        (b"x-orchestrator-job-id", grant.job_id.encode()),
        (b"x-orchestrator-model", grant.model.encode("ascii", "replace")),
        (b"x-orchestrator-backend", grant.backend.value.encode()),
        (b"x-orchestrator-reason", _line(grant.reason).encode()),
        (b"x-orchestrator-queue-ms", str(max(0, round(queued_s * 1000))).encode()),
        (b"x-orchestrator-overhead-ms", f"{max(0.0, overhead_s) * 1000:.1f}".encode()),
    ]


def _line(reason: str) -> str:
    # What most reasons are already is told in a hundredth of the time that cleaning takes.
    plain = len(reason) <= _PLAIN_CHARS and reason.isascii() and reason.isprintable()
    return reason if plain else ascii_line(reason)


async def standing(jobs: JobStore, line: Line, target: str) -> str:
    """How a request without an answer stands, in one line; ends one whose job is over without our hearing."""
    if line.attempt is not None:
        return f"running, waiting for the first byte of {line.attempt.grant.model}"
    try:
        record = await jobs.get(line.job_id, with_result=False)
    except StoreUnavailable:
        return "waiting, Redis does not answer"
    if record is None:
        line.cut(Cut.LOST)
        return "lost"
    if record.state in FINAL_STATES:
        fields = record.fields
        line.end(
            Ended(line.job_id, record.state, fields.get("error_type", ""), fields.get("error_detail", ""))
        )
        return record.state.value
    return _queued(record, target)


def _queued(record: JobRecord, target: str) -> str:
    job = job_of(record)
    if job.position is None:
        return f"waiting for its next try, {' '.join(record.fields.get('error_detail', '').split())}"
    held = job.decision is not None and job.decision.action is Action.HOLD and job.decision.reason
    place = f"queued position {job.position} of {target}"
    return f"{place}, {' '.join(held.split())}" if held else place
