"""One request from its acceptance to its recorded end: submitted, granted, answered, settled."""

from __future__ import annotations

import asyncio
import time

from loguru import logger

from services.api.gateway import refusals
from services.api.gateway.answers import Answer
from services.api.gateway.asks import Ask
from services.api.gateway.client import Client, Headers, Patience
from services.api.gateway.lines import Attempt, JobEnded, Line
from services.api.gateway.outcomes import (
    SILENT,
    Cut,
    broken_off,
    failure_of_cut,
    refusal_of_cut,
    result_of,
)
from services.api.gateway.parts import Parts
from services.api.gateway.refusals import Refusal
from services.api.gateway.standing import decision_headers, standing
from services.api.gateway.submission import submit
from shared import outcomes
from shared.backends.completion import Completion
from shared.backends.errors import BackendError, Rejected
from shared.canonical import log_dispatch
from shared.errors import StoreUnavailable
from shared.limit import Limit
from shared.persist import persist
from shared.states import JobState
from shared.store.records import CancelOutcome, FailOutcome, Failure, FinishOutcome
from shared.submission import new_job_id

_ENDED_AS = {
    FailOutcome.DEAD: JobState.DEAD,
    FailOutcome.CANCELLED: JobState.CANCELLED,
    FailOutcome.EXPIRED: JobState.EXPIRED,
}


class Exchange:
    """One client's request; ``started`` is when it came (monotonic)."""

    def __init__(self, parts: Parts, ask: Ask, client: Client, started: float) -> None:
        self._parts = parts
        self._ask = ask
        self._started = started
        self._line = Line(new_job_id(), self.cut)
        self._limit: Limit | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._cut: Cut | None = None
        self._settled = False
        self._submitted_at = started
        self._called_at = started
        self._ended_at: float | None = None
        self._patience: Patience | None = None
        self._outcome = "lost"
        self._completion: Completion | None = None
        self.client = client

    @property
    def waits(self) -> bool:
        """Whether no backend works on it."""
        return self._line.attempt is None

    def cut(self, cut: Cut) -> None:
        """End it before its answer is complete."""
        if self._limit is not None and self._cut is None and not self._limit.expired:
            self._cut = cut
            self._limit.cut()

    def attend(self, now: float) -> None:
        """See to a client that leaves or waits for long; to be called every moment (``now``: monotonic)."""
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())
        if self._patience is not None:
            self._patience.attend(now)

    async def run(self) -> None:
        """Until the client has its answer and the job's end is recorded."""
        self._parts.board.open(self._line)
        try:
            await self._run()
        except Exception as error:
            logger.exception("job={}: unexpected error", self._line.job_id)
            await self._settle(outcomes.crash(error, 0, self._parts.settings.router))
            await self._refuse(Refusal(500, "internal_error", "an unexpected error: the api's log says more"))
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
            self._close()

    async def _run(self) -> None:
        jobs = self._parts.settings.jobs
        try:
            with Limit(self._ask.deadline_s or jobs.deadline_s) as limit:
                self._limit = limit
                try:
                    completion = await self._serve()
                finally:
                    self._limit = None  # what is over can't be cut any more
        except TimeoutError:
            if not limit.expired:
                raise
            await self._end_by(self._cut or Cut.DEADLINE)
        except JobEnded as over:
            self._settled = True
            ended = over.ended
            await self._refuse(refusals.of_end(ended.state, ended.error_type, ended.detail))
        except StoreUnavailable as error:
            await self._refuse(refusals.store_away(error))
        except Refusal as refusal:
            await self._refuse(refusal)
        else:
            await self._succeed(completion)

    async def _watch(self) -> None:
        await self.client.gone()
        if not self.client.ended:
            self.cut(Cut.GONE)

    async def _serve(self) -> Completion | None:
        """The answer's measurements; None where the backend's own refusal was the answer."""
        await self._submit()
        headers = [(b"x-orchestrator-job-id", self._line.job_id.encode())]
        self._patience = Patience(self.client, self._look, headers, streaming=self._ask.stream)
        try:
            while True:
                attempt = await self._granted()
                try:
                    return await self._answer(attempt).run()
                except BackendError as error:
                    if await self._over(attempt, error):
                        return None
        finally:
            await self._patience.stop()

    async def _submit(self) -> None:
        self._settled = True  # until it is known to be accepted
        await submit(self._parts, self._ask, self._line)
        self._settled = False
        self._submitted_at = time.monotonic()

    async def _granted(self) -> Attempt:
        attempt = await self._line.granted()
        if attempt.in_doubt:
            await attempt.wait_accepted()
            if attempt.lost:
                raise self._lost()
        if self.client.begun:
            grant = attempt.grant
            await self.client.comment(
                f"model={grant.model} backend={grant.backend.value} reason={' '.join(grant.reason.split())}"
            )
        self._called_at = time.monotonic()
        return attempt

    def _answer(self, attempt: Attempt) -> Answer:
        async def ready(at: float) -> Headers:
            if self._patience is not None:
                await self._patience.stop()
            return self._headers(attempt, at)

        parts, grant = self._parts, attempt.grant
        public = self._ask.named or parts.public_name(grant.model)
        return Answer(parts.http, parts.settings, self._ask, self.client, grant, public, ready)

    async def _over(self, attempt: Attempt, error: BackendError) -> bool:
        """A failed attempt: False if the job waits for another one. Raises ``Refusal``."""
        router = self._parts.settings.router
        if self.client.answered:
            await self.client.refuse(refusals.of_backend(error))
            await self._fail(attempt, broken_off(error))
            return True
        outcome = await self._fail(attempt, outcomes.failure_of(error, attempt.grant.tries, router))
        if outcome is FailOutcome.QUEUED:
            self._settled = False
            return False
        if (
            isinstance(error, Rejected)
            and error.answer
            and not self.client.begun
            and (error.status or 0) >= 400
        ):
            kind = b"application/json" if error.answer[:1] == b"{" else b"text/plain"
            headers = [(b"content-type", kind), *self._headers(attempt, time.monotonic())]
            headers += refusals.of_backend(error).headers
            await self.client.whole(error.status or 400, error.answer, headers)
            return True
        if outcome is FailOutcome.FAILED:
            raise refusals.of_backend(error)
        if outcome is FailOutcome.STALE:
            raise self._lost()
        raise refusals.of_end(_ENDED_AS[outcome], error.type, error.detail)

    async def _fail(self, attempt: Attempt, failure: Failure) -> FailOutcome:
        """Record how an attempt of ours ended."""
        outcome = FailOutcome.STALE
        if not attempt.lost:
            jobs, grant = self._parts.jobs, attempt.grant
            outcome = await persist(lambda: jobs.fail(grant.job_id, grant.attempt, failure))
        self._settled = True
        self._drop(attempt)
        self._line.failed(attempt)
        self._log(attempt, outcome.value.lower(), failure)
        return outcome

    def _drop(self, attempt: Attempt) -> None:
        self._parts.leases.drop(attempt)
        self._uncount(attempt)

    def _uncount(self, attempt: Attempt) -> None:
        """No backend works on it any more: it counts in no decision."""
        if attempt.counts:
            attempt.counts = False
            self._parts.fast.pictures.left(attempt.grant.model)

    async def _succeed(self, completion: Completion | None) -> None:
        attempt = self._line.attempt
        if completion is None or attempt is None or attempt.lost:
            return
        self._ended_at = time.monotonic()
        self._uncount(attempt)
        if attempt.spare:
            await self._parts.moments.wait()
        jobs, grant = self._parts.jobs, attempt.grant
        ended = await persist(
            lambda: jobs.finish(
                grant.job_id,
                grant.attempt,
                result=result_of(completion),
                fields=outcomes.job_fields(completion),
                learned=outcomes.learned(completion),
            )
        )
        self._completion = completion
        self._outcome = "succeeded" if ended.outcome is FinishOutcome.FINISHED else "stale"

    async def _end_by(self, cut: Cut) -> None:
        ended = self._line.ended
        if cut is Cut.ENDED and ended is not None:
            await self._refuse(refusals.of_end(ended.state, ended.error_type, ended.detail))
            return
        logger.debug("job={} cut: {}", self._line.job_id, cut)
        # A client that reads slowly must not hold up the record, nor an absent Redis the word to the client.
        async with asyncio.TaskGroup() as ending:
            # In the queue a deadline is the routers' business.
            if cut is not Cut.LOST and not (cut is Cut.DEADLINE and self.waits):
                ending.create_task(self._settle(failure_of_cut(cut)))
            if cut not in SILENT:
                ending.create_task(self._refuse(refusal_of_cut(cut)))

    async def _settle(self, failure: Failure) -> None:
        """Let no job stay behind, whatever it was at."""
        if self._settled:
            return
        attempt = self._line.attempt
        if attempt is not None and await self._fail(attempt, failure) is not FailOutcome.QUEUED:
            return
        if self._line.ended is None:
            job_id = self._line.job_id
            outcome, _ = await persist(lambda: self._parts.jobs.cancel(job_id, failure.detail))
            attempt = self._line.attempt
            if outcome is CancelOutcome.REQUESTED and attempt is not None:
                await self._fail(attempt, failure)  # granted meanwhile; a later grant is given back

    async def _refuse(self, refusal: Refusal) -> None:
        headers = [(b"x-orchestrator-job-id", self._line.job_id.encode())]
        await self.client.refuse(refusal, headers)

    def _lost(self) -> Refusal:
        ended = self._line.ended
        if ended is None:
            return refusal_of_cut(Cut.LOST)
        return refusals.of_end(ended.state, ended.error_type, ended.detail)

    def _headers(self, attempt: Attempt, at: float) -> Headers:
        """``at``: when the backend had delivered what is sent now."""
        overhead_s = (self._submitted_at - self._started) + (self._called_at - attempt.granted_at)
        overhead_s += time.monotonic() - at
        queued_s = attempt.granted_at - self._submitted_at
        return decision_headers(attempt.grant, queued_s=queued_s, overhead_s=overhead_s)

    async def _look(self) -> str:
        return await standing(self._parts.jobs, self._line, self._ask.target)

    def _close(self) -> None:
        self._parts.board.close(self._line)
        attempt = self._line.attempt
        if attempt is not None:
            self._drop(attempt)
            self._log(attempt, self._outcome, self._completion)

    def _log(self, attempt: Attempt, outcome: str, told: Completion | Failure | None) -> None:
        grant = attempt.grant
        log_dispatch(
            grant.job_id,
            self._ask.request_id,
            grant.attempt,
            grant.model,
            grant.gpu or "unknown",
            outcome,
            told,
            queue_ms=max(0.0, attempt.granted_at - self._submitted_at) * 1000,
            total_ms=((self._ended_at or time.monotonic()) - self._called_at) * 1000,
            code=grant.code,
            reason=grant.reason,
        )
