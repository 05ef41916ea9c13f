"""The calls about jobs: submit, read, list, cancel, follow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.types import ASGIApp

from services.api import job_calls, problems
from services.api.access import access_of
from services.api.event_stream import EventStream, JobEvents
from services.api.parameters import KNOWN_ONCE
from services.api.problems import ALREADY_ENDED, INVALID, UNKNOWN_JOB, Problem
from services.api.representations import JobList, decision_headers, job_of
from services.api.state import ApiState, state_of
from services.api.submissions import accept
from services.api.waiting import wait_for_end
from shared.states import FINAL_STATES, JobState
from shared.store.records import CancelOutcome, JobRecord

router = APIRouter(tags=["jobs"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))

_ID_SHOWN = 64
"""Characters of an unknown id that its 404 repeats."""
_CANCEL_REASON = "cancelled over the HTTP API"

Wait = Annotated[
    float | None, Query(ge=0, description="Seconds to wait for the job's end, at most api.max_wait_s")
]


@router.post(
    "/v1/jobs",
    status_code=202,
    response_class=Response,
    openapi_extra=job_calls.BODY,
    responses=job_calls.SUBMIT,
)
async def submit_job(
    request: Request,
    wait: Wait = None,
    idempotency_key: job_calls.IdempotencyKey = None,
) -> Response:
    """Accept a job. A client that leaves while it waits does not cancel the job."""
    started = time.perf_counter()
    state = state_of(request)
    within_s = _wait_s(wait, state)
    record = await accept(state, request, idempotency_key)
    spent_ms = (time.perf_counter() - started) * 1000
    record = await _waited(request, record, within_s)
    status = 200 if within_s and record.state in FINAL_STATES else 202
    return _submitted(record, status, spent_ms)


def calls(state: ApiState) -> Mapping[str, ASGIApp]:
    """What answers a POST without query parameters by itself, by path."""

    async def submit(request: Request) -> Response:
        started = time.perf_counter()
        record = await accept(state, request, request.headers.get("idempotency-key"))
        return _submitted(record, 202, (time.perf_counter() - started) * 1000)

    return {"/v1/jobs": partial(problems.answered, submit)}


@router.get(
    "/v1/jobs",
    response_class=Response,
    responses={200: {"model": JobList}, **problems.responses(422, 503)},
)
async def list_jobs(
    request: Request,
    state: Annotated[JobState | None, Query(description="Only jobs in this state")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """The newest jobs first, without results and places in the queue; to a key of the role user, its own."""
    api = state_of(request)
    access = access_of(request.scope)
    async with api.store():
        records = await api.jobs.list_newest(
            state=state, limit=limit, caller=None if access is None else access.sees
        )
    listed = JobList(jobs=[job_of(record) for record in records])
    return Response(listed.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/jobs/{job_id}",
    response_class=Response,
    responses=job_calls.READ,
)
async def read_job(request: Request, job_id: str, wait: Wait = None) -> Response:
    """One job as it stands; with `wait` once it has ended, or when the time is up."""
    started = time.perf_counter()
    state = state_of(request)
    within_s = _wait_s(wait, state)
    record = await _known(request, job_id)
    spent_ms = (time.perf_counter() - started) * 1000
    return _answer(await _waited(request, record, within_s), 200, spent_ms)


@router.delete(
    "/v1/jobs/{job_id}",
    response_class=Response,
    responses=job_calls.CANCEL,
)
async def cancel_job(request: Request, job_id: str) -> Response:
    """Cancel a job: at once while it waits, by request while it runs."""
    started = time.perf_counter()
    state = state_of(request)
    if access_of(request.scope) is not None:
        await _known(request, job_id)
    async with state.store():
        outcome, found = await state.jobs.cancel(job_id, _CANCEL_REASON)
    if outcome is CancelOutcome.UNKNOWN:
        raise _unknown(job_id)
    if outcome is CancelOutcome.ENDED:
        raise Problem(ALREADY_ENDED, f"job {job_id} has already ended: {found}")
    record = await _known(request, job_id)
    status = 202 if outcome is CancelOutcome.REQUESTED else 200
    return _answer(record, status, (time.perf_counter() - started) * 1000)


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=Response,
    responses=job_calls.FOLLOW,
)
async def follow_job(
    request: Request,
    job_id: str,
    last_event_id: job_calls.LastEventId = None,
) -> Response:
    """The job's transitions so far, then as they happen, as server-sent events until its end."""
    state = state_of(request)
    record = await _known(request, job_id)
    events = JobEvents(state, record, last_event_id)
    if await events.nothing_left(record):
        return Response(status_code=204)
    return EventStream(events.stream())


async def _known(request: Request, job_id: str) -> JobRecord:
    """The job, if there is one that this request may see; raises ``Problem`` (404)."""
    record = await state_of(request).job(job_id)
    access = access_of(request.scope)
    if record is None or not (access is None or access.owns(record.fields.get("caller", ""))):
        raise _unknown(job_id)
    return record


async def _waited(request: Request, record: JobRecord, within_s: float) -> JobRecord:
    if not within_s or record.state in FINAL_STATES:
        return record
    state = state_of(request)
    found = await wait_for_end(
        state.job, state.feed, record, within_s=within_s, client_left=request.is_disconnected
    )
    if found is None:
        raise _unknown(record.job_id)
    return found


def _wait_s(wait: float | None, state: ApiState) -> float:
    most = state.settings.api.max_wait_s
    if wait is not None and not wait <= most:
        raise Problem(INVALID, f"wait: at most api.max_wait_s = {most:g} seconds", field="wait")
    return wait or 0.0


def _unknown(job_id: str) -> Problem:
    return Problem(UNKNOWN_JOB, f"no job {job_id[:_ID_SHOWN]!r}: it never was, or it is kept no longer")


def _submitted(record: JobRecord, status: int, overhead_ms: float) -> Response:
    return _answer(record, status, overhead_ms, Location=f"/v1/jobs/{record.job_id}")


def _answer(record: JobRecord, status: int, overhead_ms: float, **headers: str) -> Response:
    job = job_of(record)
    return Response(
        job.model_dump_json(),
        status,
        headers={**decision_headers(job, overhead_ms), **headers},
        media_type="application/json",
    )
