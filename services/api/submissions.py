"""POST /v1/jobs behind its two ways in, FastAPI's and the plain one: accept a job, and say how it stands."""

from __future__ import annotations

from dataclasses import replace

from fastapi import Request

from services.api.access import Access, access_of
from services.api.full import again_s_of, limit_reached
from services.api.gateway.fastpath import FIRST_ATTEMPT
from services.api.problems import KEY_LIMIT, KEY_REUSED, NOT_ALLOWED, QUEUE_FULL, Problem
from services.api.request_id import request_id_of
from services.api.requests import Idempotency, idempotency, parse_request, read_body
from services.api.state import ApiState
from shared import log
from shared.canonical import log_decision
from shared.errors import StoreUnavailable
from shared.jobs import JobRequest
from shared.states import JobState
from shared.store.records import JobRecord, NewJob, SubmitOutcome, Submitted
from shared.submission import new_job, new_job_id


async def accept(state: ApiState, request: Request, idempotency_key: str | None) -> JobRecord:
    """The job that a request asks for, accepted; or, if it is a repetition, the first one's as it stands.

    Raises ``Problem``, ``InvalidRequest``, ``StoreUnavailable`` or ``ClientDisconnect``.
    """
    body = await read_body(request, state.settings.api.max_body_bytes)
    access = access_of(request.scope)
    job = _allowed(parse_request(body), access)
    key = idempotency(idempotency_key, job, body)
    async with state.store():
        await state.registry.check(job)
        new = new_job(job, state.settings, new_job_id(), request_id_of(request.scope))
        if access is not None:
            new = replace(new, limits=access.limits)
        submitted = await _submit(state, new, key)
    log.event(
        "submit",
        "DEBUG",
        request=request_id_of(request.scope),
        job=submitted.job_id,
        outcome=submitted.outcome.value,
        target=job.target,
    )
    return await _as_it_stands(state, submitted, new)


def _allowed(job: JobRequest, access: Access | None) -> JobRequest:
    """The job as its key may hand it in, where there is one; raises ``Problem`` (403)."""
    if access is None:
        return job
    why = access.refusal(job.named_model, fallback=job.wants_fallback)
    if why is not None:
        raise Problem(NOT_ALLOWED, f"model: {why}", field="model", known=access.models)
    return job.model_copy(update={"caller": access.caller(job.caller)})


async def _submit(state: ApiState, new: NewJob, key: Idempotency | None) -> Submitted:
    bound = state.settings.queue.bound
    submitted, start = await state.fast.submit(
        new,
        bound=bound,
        idempotency=key.key if key else None,
        digest=key.digest if key else "",
    )
    if start is not None:
        log_decision(start.decision, new.id, new.fields["request_id"], attempt=FIRST_ATTEMPT)
    if submitted.outcome is SubmitOutcome.MISMATCH:
        raise Problem(
            KEY_REUSED,
            f"Idempotency-Key: was sent with another body, for job {submitted.job_id}: use a new key",
            field="Idempotency-Key",
        )
    if submitted.outcome is SubmitOutcome.LIMITED and new.limits is not None:
        said, again_s = limit_reached(new.limits, submitted)
        raise Problem(KEY_LIMIT, said, headers={"Retry-After": str(again_s)})
    if submitted.outcome is SubmitOutcome.FULL:
        again_s = again_s_of(submitted.ended_per_s)
        raise Problem(
            QUEUE_FULL,
            f"queue.bound = {bound} jobs wait already: try again in {again_s} s",
            headers={"Retry-After": str(again_s)},
        )
    return submitted


async def _as_it_stands(state: ApiState, submitted: Submitted, new: NewJob) -> JobRecord:
    if submitted.position is not None or submitted.outcome is SubmitOutcome.STARTED:
        return _queued(submitted, new)
    # It was accepted before: by the first request with its key, or by a call whose reply was lost. It is
    # safe, so a Redis that goes away right now is no error.
    try:
        record = await state.job(submitted.job_id)
    except StoreUnavailable:
        record = None
    if record is not None:
        return record
    return JobRecord(submitted.job_id, {**new.fields, "state": JobState.QUEUED.value, "target": new.target})


def _queued(submitted: Submitted, new: NewJob) -> JobRecord:
    """The job as it was queued: what was sent, and what Redis added by the reply that it gave.

    One that could be started in the same step was queued too, in front of nobody.
    """
    added = {
        "state": JobState.QUEUED.value,
        "target": new.target,
        "submitted_ms": str(submitted.now_ms),
        "deadline_ms": str(submitted.now_ms + new.deadline_in_ms),
        "attempt": "0",
        "tries": "0",
    }
    return JobRecord(submitted.job_id, {**new.fields, **added}, submitted.position or 1, submitted.hold)
