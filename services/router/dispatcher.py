"""Dispatch: run claimed attempts against their backends under a lease, and record how each one ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from loguru import logger
from pydantic import JsonValue, TypeAdapter

from services.router.lease import LeaseEnd, keep_lease
from shared.backends.completion import Completion, CompletionCall, complete
from shared.backends.errors import BackendError
from shared.backends.http import HttpClient
from shared.canonical import log_dispatch, shown_gpus
from shared.config import Settings
from shared.decision.snapshot import Model
from shared.errors import StoreUnavailable
from shared.outcomes import (
    CANCELLED,
    EXPIRED,
    RELEASED,
    crash,
    failure_of,
    job_fields,
    learned,
    result_of,
)
from shared.request_ids import at_backend
from shared.store.jobs import JobStore
from shared.store.records import FailOutcome, Failure, FinishOutcome, Head

_BODY = TypeAdapter(dict[str, JsonValue])
_AWAY_S = 0.2
_HAND_OVER_S = 1.0
"""For recording what was handed over; what Redis does not take by then is swept when its lease runs out.

With the default ``router.drain_s`` (8 s) a router has to be gone 10 s after it was told.
"""
_Answer = TypeVar("_Answer")


@dataclass(eq=False, slots=True)
class Attempt:
    """One claimed attempt. ``deadline_in_s`` counts from the claim, on our own monotonic clock.

    ``queue_ms``: how long the job had waited, None if that can't be read. ``nobody_waits``: whether Redis
    said so when its success was recorded.
    """

    job_id: str
    request_id: str
    queue_ms: float | None
    attempt: int
    tries: int
    model: Model
    api_key: str | None
    body: str
    deadline_in_s: float
    nobody_waits: bool = False
    renew_now: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Dispatcher:
    """The attempts that this router runs.

    ``on_end`` is called with each that is over, ``on_delay`` with the seconds that a retry has to
    wait.
    """

    def __init__(
        self,
        jobs: JobStore,
        http: HttpClient,
        settings: Settings,
        *,
        on_end: Callable[[Attempt], None],
        on_delay: Callable[[float], None],
    ) -> None:
        self._jobs = jobs
        self._http = http
        self._settings = settings
        self._on_end = on_end
        self._on_delay = on_delay
        self._running: dict[str, tuple[Attempt, asyncio.Task[None]]] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self, attempt: Attempt) -> None:
        """Run an attempt in the background."""
        task = asyncio.create_task(self._run(attempt), name=f"job {attempt.job_id}")
        self._running[attempt.job_id] = (attempt, task)
        task.add_done_callback(lambda _: self._forget(attempt))

    def check_lease(self, job_id: str) -> None:
        """Somebody asked to cancel this job: renew at once, which tells whether it is meant."""
        known = self._running.get(job_id)
        if known is not None:
            known[0].renew_now.set()

    async def drain(self, within_s: float) -> None:
        """Let running attempts end for ``within_s`` seconds, then hand the rest over, uncharged."""
        tasks = [task for _, task in self._running.values()]
        if tasks and within_s > 0:
            await asyncio.wait(tasks, timeout=within_s)
        left = list(self._running.values())
        for attempt, _ in left:
            attempt.released.set()
        if left:
            logger.info("handing over {} jobs that still run", len(left))
            _, stuck = await asyncio.wait([task for _, task in left], timeout=_HAND_OVER_S)
            for task in stuck:
                task.cancel()

    def _forget(self, attempt: Attempt) -> None:
        known = self._running.get(attempt.job_id)
        if known is not None and known[0] is attempt:
            del self._running[attempt.job_id]
        self._on_end(attempt)

    async def _run(self, attempt: Attempt) -> None:
        started = time.monotonic()
        outcome: Completion | Failure | None
        try:
            outcome = await self._attempt(attempt)
        except BackendError as error:
            outcome = failure_of(error, attempt.tries, self._settings.router)
        except Exception as error:  # a bug of ours must not leave a job running until its lease is swept
            logger.exception("job={} attempt={}: unexpected error", attempt.job_id, attempt.attempt)
            outcome = crash(error, attempt.tries, self._settings.router)
        ended = await self._record(attempt, outcome)
        log_dispatch(
            attempt.job_id,
            attempt.request_id,
            attempt.attempt,
            attempt.model.name,
            shown_gpus(attempt.model.gpus),
            ended,
            outcome,
            queue_ms=attempt.queue_ms,
            total_ms=(time.monotonic() - started) * 1000,
        )

    async def _attempt(self, attempt: Attempt) -> Completion | Failure | None:
        """Call the backend under the lease. None: the lease is lost, somebody else's job by now."""
        work = asyncio.create_task(complete(self._http, self._call(attempt)))
        lease = asyncio.create_task(
            keep_lease(
                self._jobs,
                attempt.job_id,
                attempt.attempt,
                self._settings.router.lease_s,
                attempt.renew_now,
            )
        )
        released = asyncio.create_task(attempt.released.wait())
        try:
            await asyncio.wait(
                {work, lease, released},
                timeout=max(0.0, attempt.deadline_in_s),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                return work.result()
            if lease.done():
                return CANCELLED if lease.result() is LeaseEnd.CANCEL else None
            return RELEASED if released.done() else EXPIRED
        finally:
            # Closing the connection is what frees the backend's slot, so it comes before the record.
            for task in (work, lease, released):
                task.cancel()
            await asyncio.wait({work, lease, released})

    def _call(self, attempt: Attempt) -> CompletionCall:
        model = attempt.model
        return CompletionCall(
            base_url=model.url,
            backend=model.backend,
            upstream_name=model.upstream_name,
            body=_BODY.validate_json(attempt.body),
            api_key=attempt.api_key,
            request_id=at_backend(attempt.request_id, model.backend, attempt.job_id, attempt.attempt),
            connect_timeout_s=self._settings.router.connect_timeout_s,
            idle_timeout_s=self._settings.router.idle_timeout_s,
            max_result_bytes=self._settings.jobs.max_result_bytes,
        )

    async def _record(self, attempt: Attempt, outcome: Completion | Failure | None) -> str:
        if outcome is None:
            return "lease_lost"
        if isinstance(outcome, Completion):
            return await self._record_success(attempt, outcome)
        failure = outcome
        ended = await self._persist(lambda: self._jobs.fail(attempt.job_id, attempt.attempt, failure))
        if ended is FailOutcome.QUEUED and failure.delay_ms > 0:
            self._on_delay(failure.delay_ms / 1000)
        return ended.value.lower()

    async def _record_success(self, attempt: Attempt, completion: Completion) -> str:
        result, fields, values = result_of(completion), job_fields(completion), learned(completion)
        ended = await self._persist(
            lambda: self._jobs.finish(
                attempt.job_id, attempt.attempt, result=result, fields=fields, learned=values
            )
        )
        attempt.nobody_waits = not ended.waiting
        return "succeeded" if ended.outcome is FinishOutcome.FINISHED else "stale"

    async def _persist(self, write: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Repeat a replay-safe write until Redis answers: the work is done, only its record is missing."""
        while True:
            try:
                return await write()
            except StoreUnavailable as error:
                logger.warning("an outcome waits for Redis: {}", error)
                await asyncio.sleep(_AWAY_S)


def queue_ms_of(head: Head, now_ms: int) -> float | None:
    """How long this job has waited at ``now_ms`` of Redis' clock."""
    submitted = head.fields.get("submitted_ms", "")
    return float(max(0, now_ms - int(submitted))) if submitted.isdecimal() else None


def api_key_of(name: str | None, environ: Mapping[str, str]) -> str | None:
    """The key for a backend from the environment variable that its registration names."""
    return environ.get(name) if name else None
