"""Dispatch: run attempts against their backends under a lease, and record how each one ended."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial

from loguru import logger
from pydantic import JsonValue, TypeAdapter

from services.router.attempts import Attempt, Cut
from services.router.recovery import GRACE_SHARE
from shared.backends.completion import Completion, CompletionCall, complete
from shared.backends.errors import BackendError
from shared.backends.http import HttpClient
from shared.canonical import log_dispatch
from shared.config import Settings
from shared.leases import ACCEPT_WITHIN_S, Leases
from shared.outcomes import crash, failure_of, job_fields, learned, result_of
from shared.persist import persist
from shared.placement.orders import FIRST_LEASE_S
from shared.request_ids import at_backend
from shared.store.jobs import JobStore
from shared.store.records import FailOutcome, Failure, FinishOutcome, RenewOutcome

_BODY = TypeAdapter(dict[str, JsonValue])
_HAND_OVER_S = 1.0
"""For recording what was handed over; what Redis does not take by then is swept when its lease runs out.

With the default ``router.drain_s`` (8 s) a router has to be gone 10 s after it was told.
"""
_CUT_BY = {RenewOutcome.STALE: Cut.LOST, RenewOutcome.CANCEL: Cut.CANCELLED}


class Dispatcher:
    """The attempts that the router named ``router`` runs.

    ``on_end`` is called with each that is over, ``on_delay`` with the seconds that a retry has to
    wait.
    """

    def __init__(
        self,
        jobs: JobStore,
        http: HttpClient,
        settings: Settings,
        *,
        router: str,
        on_end: Callable[[Attempt], None],
        on_delay: Callable[[float], None],
    ) -> None:
        self._jobs = jobs
        self._http = http
        self._settings = settings
        self._router = router
        self._on_end = on_end
        self._on_delay = on_delay
        self._running: dict[str, tuple[Attempt, asyncio.Task[None]]] = {}
        self._leases: Leases[Attempt] = Leases(jobs, settings.router.lease_s, router=router, gives_up=True)

    @property
    def running(self) -> int:
        return len(self._running)

    def runs(self, job_id: str) -> bool:
        """Whether it runs an attempt of this job."""
        return job_id in self._running

    async def run(self) -> None:
        """Keep the leases; until cancelled."""
        await self._leases.run()

    def start(self, attempt: Attempt) -> None:
        """Run an attempt in the background."""
        job_id = attempt.grant.job_id
        task = asyncio.create_task(self._run(attempt))
        self._running[job_id] = (attempt, task)
        task.add_done_callback(lambda _: self._forget(attempt))

    def check_lease(self, job_id: str) -> None:
        """Somebody asked to cancel this job: renew at once, which tells whether it is meant."""
        known = self._running.get(job_id)
        if known is not None:
            self._leases.renew_now(known[0])

    async def drain(self, within_s: float) -> None:
        """Let running attempts end for ``within_s`` seconds, then hand the rest over, uncharged."""
        tasks = [task for _, task in self._running.values()]
        if tasks and within_s > 0:
            await asyncio.wait(tasks, timeout=within_s)
        left = list(self._running.values())
        for attempt, _ in left:
            attempt.cut(Cut.RELEASED)
        if left:
            logger.info("handing over {} jobs that still run", len(left))
            _, stuck = await asyncio.wait([task for _, task in left], timeout=_HAND_OVER_S)
            for task in stuck:
                task.cancel()

    def _forget(self, attempt: Attempt) -> None:
        self._leases.drop(attempt)
        known = self._running.get(attempt.grant.job_id)
        if known is not None and known[0] is attempt:
            del self._running[attempt.grant.job_id]
        self._on_end(attempt)

    async def _run(self, attempt: Attempt) -> None:
        started, grant = time.monotonic(), attempt.grant
        self._keep(attempt)
        outcome: Completion | Failure | Cut
        try:
            # Closing the connection is what frees the backend's slot, so it comes before the record.
            outcome = await attempt.until_cut(complete(self._http, self._call(attempt)))
        except BackendError as error:
            outcome = failure_of(error, grant.tries, self._settings.router)
        except Exception as error:  # a bug of ours must not leave a job running until its lease is swept
            logger.exception("job={} attempt={}: unexpected error", grant.job_id, grant.attempt)
            outcome = crash(error, grant.tries, self._settings.router)
        told = outcome.value if isinstance(outcome, Cut) else outcome
        ended = await self._record(attempt, told)
        log_dispatch(
            grant.job_id,
            attempt.request_id,
            grant.attempt,
            grant.model,
            grant.gpu or "unknown",
            ended,
            told,
            queue_ms=attempt.queue_ms,
            total_ms=(time.monotonic() - started) * 1000,
        )

    def _keep(self, attempt: Attempt) -> None:
        def told(outcome: RenewOutcome) -> None:
            cut = _CUT_BY.get(outcome)
            if cut is not None:
                attempt.cut(cut)

        if attempt.handed:
            # Well before it is swept, which is a whole grace after its first lease.
            lease_s = self._settings.router.lease_s
            until_s = min(lease_s, FIRST_LEASE_S) + GRACE_SHARE / 2 * lease_s
            self._leases.keep(attempt, told, within_s=ACCEPT_WITHIN_S, lease_s=until_s)
        else:
            self._leases.keep(attempt, told)

    def _call(self, attempt: Attempt) -> CompletionCall:
        grant, router = attempt.grant, self._settings.router
        return CompletionCall(
            base_url=grant.url,
            backend=grant.backend,
            upstream_name=grant.upstream_name,
            body=_BODY.validate_json(attempt.body),
            api_key=os.environ.get(grant.api_key_env) if grant.api_key_env else None,
            request_id=at_backend(attempt.request_id, grant.backend, grant.job_id, grant.attempt),
            connect_timeout_s=router.connect_timeout_s,
            idle_timeout_s=router.idle_timeout_s,
            max_result_bytes=self._settings.jobs.max_result_bytes,
        )

    async def _record(self, attempt: Attempt, outcome: Completion | Failure | None) -> str:
        if outcome is None:
            return "lease_lost"
        if isinstance(outcome, Completion):
            return await self._record_success(attempt, outcome)
        failed = await self.give_back(attempt, outcome)
        if failed is FailOutcome.QUEUED and outcome.delay_ms > 0:
            self._on_delay(outcome.delay_ms / 1000)
        return failed.value.lower()

    async def give_back(self, attempt: Attempt, failure: Failure) -> FailOutcome:
        """Record that an attempt of ours ended without success, or was not begun."""
        grant = attempt.grant
        fail = partial(self._jobs.fail, grant.job_id, grant.attempt, failure, self._router)
        return await persist(fail)

    async def _record_success(self, attempt: Attempt, completion: Completion) -> str:
        finish = partial(
            self._jobs.finish,
            attempt.grant.job_id,
            attempt.grant.attempt,
            result=result_of(completion),
            fields=job_fields(completion),
            learned=learned(completion),
            router=self._router,
        )
        ended = await persist(finish)
        attempt.nobody_waits = not ended.waiting
        return "succeeded" if ended.outcome is FinishOutcome.FINISHED else "stale"
