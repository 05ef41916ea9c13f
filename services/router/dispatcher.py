"""Dispatch: run claimed attempts against their backends under a lease, and record how each one ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
from loguru import logger
from pydantic import JsonValue, TypeAdapter

from services.router.lease import LeaseEnd, keep_lease
from shared.backends.completion import Completion, CompletionCall, complete
from shared.backends.errors import BackendError
from shared.config import JobSettings, RouterSettings
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
from shared.store.jobs import JobStore
from shared.store.records import FailOutcome, Failure, FinishOutcome

_BODY = TypeAdapter(dict[str, JsonValue])
_AWAY_S = 0.2
_HAND_OVER_S = 4.0
"""For recording what was handed over; what Redis does not take by then is swept when its lease runs out."""
_Answer = TypeVar("_Answer")


@dataclass(eq=False, slots=True)
class Attempt:
    """One claimed attempt. ``deadline_in_s`` counts from the claim, on our own monotonic clock."""

    job_id: str
    attempt: int
    tries: int
    model: Model
    api_key: str | None
    body: str
    deadline_in_s: float
    renew_now: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Dispatcher:
    """The attempts that this router runs.

    ``on_end`` is called after each, ``on_delay`` with the seconds that a retry has to wait.
    """

    def __init__(
        self,
        jobs: JobStore,
        session: aiohttp.ClientSession,
        router: RouterSettings,
        limits: JobSettings,
        *,
        on_end: Callable[[], None],
        on_delay: Callable[[float], None],
    ) -> None:
        self._jobs = jobs
        self._session = session
        self._router = router
        self._limits = limits
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
        self._on_end()

    async def _run(self, attempt: Attempt) -> None:
        started = time.monotonic()
        outcome: Completion | Failure | None
        try:
            outcome = await self._attempt(attempt)
        except BackendError as error:
            outcome = failure_of(error, attempt.tries, self._router)
        except Exception as error:  # a bug of ours must not leave a job running until its lease is swept
            logger.exception("job={} attempt={}: unexpected error", attempt.job_id, attempt.attempt)
            outcome = crash(error, attempt.tries, self._router)
        ended = await self._record(attempt, outcome)
        logger.info(
            "dispatch job={} attempt={} model={} outcome={} dur_ms={:.0f}{}",
            attempt.job_id,
            attempt.attempt,
            attempt.model.name,
            ended,
            (time.monotonic() - started) * 1000,
            f" {outcome.error_type}: {outcome.detail}" if isinstance(outcome, Failure) else "",
        )

    async def _attempt(self, attempt: Attempt) -> Completion | Failure | None:
        """Call the backend under the lease. None: the lease is lost, somebody else's job by now."""
        work = asyncio.create_task(complete(self._session, self._call(attempt)))
        lease = asyncio.create_task(
            keep_lease(self._jobs, attempt.job_id, attempt.attempt, self._router.lease_s, attempt.renew_now)
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
            connect_timeout_s=self._router.connect_timeout_s,
            idle_timeout_s=self._router.idle_timeout_s,
            max_result_bytes=self._limits.max_result_bytes,
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
        return "succeeded" if ended is FinishOutcome.FINISHED else "stale"

    async def _persist(self, write: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Repeat a replay-safe write until Redis answers: the work is done, only its record is missing."""
        while True:
            try:
                return await write()
            except StoreUnavailable as error:
                logger.warning("an outcome waits for Redis: {}", error)
                await asyncio.sleep(_AWAY_S)


def api_key_of(name: str | None, environ: Mapping[str, str]) -> str | None:
    """The key for a backend from the environment variable that its registration names."""
    return environ.get(name) if name else None
