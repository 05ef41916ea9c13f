"""The door of every peer: `POST /v1/jobs` checks the job as ours does, enqueues it and answers 202."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from pydantic import JsonValue

from shared.config import JobSettings
from shared.jobs import JobRequest

REDIS_URL = os.environ["BENCH_REDIS_URL"]
BACKEND_URL = os.environ["BENCH_BACKEND_URL"]

Payload = dict[str, JsonValue]
Enqueue = Callable[[Payload], Awaitable[str]]
Opened = Callable[[], AbstractAsyncContextManager[object]]


def create_door(enqueue: Enqueue, opened: Opened) -> FastAPI:
    """An app that hands jobs to ``enqueue`` (which answers the id) while ``opened`` is entered."""
    limits = JobSettings()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with opened():
            yield

    door = FastAPI(lifespan=lifespan)

    async def submit(job: JobRequest) -> dict[str, str]:
        return {"job_id": await enqueue(payload_of(job, limits)), "state": "queued"}

    door.post("/v1/jobs", status_code=202)(submit)
    return door


def payload_of(job: JobRequest, limits: JobSettings) -> Payload:
    """What the backend is sent, the same as by our router."""
    options: Payload = {"include_usage": True}
    return {**job.backend_body(limits), "model": job.named_model, "stream": True, "stream_options": options}
