"""One benchmark: real jobs through the real path, behind everybody else's, and what they measured."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from loguru import logger

from services.api.benchmark_bodies import BenchmarkParameters, LevelSeen
from services.api.measurable import critical, gpus_of, measurable, serving
from services.api.measuring import Measured, figures, learned, measured, verdict
from services.api.representations import JobError
from services.api.waiting import JobFeed, wait_for_end
from shared.config import Settings
from shared.decision.snapshot import Snapshot
from shared.errors import StoreUnavailable
from shared.jobs import JobRequest
from shared.snapshots import snapshot_of
from shared.states import FINAL_STATES, JobState
from shared.store.benchmarks import BenchmarkStore, Measurable, TurnOutcome
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.records import JobRecord, SubmitOutcome
from shared.submission import new_job, new_job_id

CALLER = "benchmark"
GRACE_S = 60.0
"""How long requests that run when the time is up may take to end; they are part of what is measured."""
_LOOK_S = 1.0
_YIELD_S = 0.1
_SLICE_S = 0.5
_RECORD_S = 20.0
"""For recording the end while Redis is away; after that it reads as interrupted."""
_WORDS = ("the", "card", "holds", "a", "model", "and", "its", "cache", "while", "some", "job", "waits", "so")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a benchmark works with."""

    settings: Settings
    jobs: JobStore
    fleet: FleetStore
    store: BenchmarkStore
    feed: JobFeed


class Run:
    """One benchmark: workers that submit and wait, and a look at levels and life every second."""

    def __init__(
        self,
        parts: Parts,
        benchmark_id: str,
        what: Measurable,
        parameters: BenchmarkParameters,
        request_id: str = "",
    ) -> None:
        """``request_id``: of the request that asked for it; its jobs have it too."""
        self._parts = parts
        self._request_id = request_id
        self._id = benchmark_id
        self._model = what.model
        self._what = what
        self._parameters = parameters
        self._until = time.monotonic() + parameters.duration_s
        self._submitted = 0
        self._results: list[Measured] = []
        self._open: set[str] = set()
        self._levels: list[LevelSeen] = []
        self._yielded_s = 0.0
        self._ended_early: str | None = None
        self._stopped: tuple[JobState, JobError] | None = None

    def stop(self, state: JobState, kind: str, detail: str) -> None:
        """Send nothing more, cancel what is under way and end in this state."""
        if self._stopped is None:
            self._stopped = state, JobError(type=kind, detail=detail)

    def interrupt(self) -> None:
        """The process stops."""
        self.stop(JobState.FAILED, "interrupted", "its api stopped")

    async def run(self) -> None:
        """To its end, which is recorded whatever happens."""
        logger.info("benchmark {} of {} begins: {}", self._id, self._model, self._parameters)
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                workers = [group.create_task(self._work()) for _ in range(self._parameters.concurrency)]
                await asyncio.wait(workers)
                watch.cancel()
        except* Exception as errors:
            logger.opt(exception=errors).error("benchmark {} of {} broke off", self._id, self._model)
            self.stop(JobState.FAILED, "internal", "an unexpected error: the log of the api says more")
        await self._insist(self._cancel_open)
        await self._insist(self._record)

    async def _work(self) -> None:
        while await self._my_turn():
            self._submitted += 1
            record = await self._submit()
            if record is None:
                self._submitted -= 1
                await self._yield()
                continue
            ended = await self._follow(record)
            self._open.discard(record.job_id)
            if ended is not None and ended.state is JobState.FAILED and ended.fields.get("attempt") == "0":
                # Refused without being tried: so would every further one be, as fast as they are sent.
                kind, detail = ended.fields.get("error_type"), ended.fields.get("error_detail")
                self.stop(JobState.FAILED, kind or "rejected", detail or "its requests are refused")
                return
            result = None if ended is None else measured(ended)
            if result is not None:
                self._results.append(result)

    async def _my_turn(self) -> bool:
        """True once nobody else's job waits for the model; False when no more is to be sent."""
        while not self._over:
            try:
                live = await self._turn()
            except StoreUnavailable as error:
                logger.debug("benchmark {} waits for Redis: {}", self._id, error)
                live = 1
            if live == 0 and not self._over:
                return True
            if not self._over:
                await self._yield()
        return False

    async def _yield(self) -> None:
        await asyncio.sleep(_YIELD_S)
        self._yielded_s += _YIELD_S / self._parameters.concurrency

    @property
    def _over(self) -> bool:
        most = self._parameters.count
        return (
            self._interrupted
            or self._ended_early is not None
            or time.monotonic() >= self._until
            or (most is not None and self._submitted >= most)
        )

    @property
    def _interrupted(self) -> bool:
        if self._parts.feed.closed:
            self.interrupt()
        return self._stopped is not None

    async def _turn(self) -> int:
        turn = await self._parts.store.turn(
            self._id, self._what, caller=CALLER, fields={"requests": str(len(self._results))}
        )
        if turn.outcome is TurnOutcome.LOST:
            self.stop(JobState.FAILED, "interrupted", "another benchmark measures one of its models now")
        elif turn.outcome is TurnOutcome.ENDED:
            self.stop(JobState.FAILED, "interrupted", "it was not heard of for too long")
        return turn.live

    async def _watch(self) -> None:
        """Keep its lock, and see what it runs under; a critical level ends it early."""
        while not self._interrupted:
            try:
                await self._turn()
                self._look(snapshot_of(await self._parts.fleet.view(heads=0), self._parts.settings))
            except StoreUnavailable as error:
                logger.debug("benchmark {} does not see the levels: {}", self._id, error)
            await asyncio.sleep(_LOOK_S)

    def _look(self, snapshot: Snapshot) -> None:
        models = serving(snapshot, self._model)
        if not models:
            self.stop(JobState.FAILED, "model_removed", f"no model answers to {self._model!r} any more")
            return
        self._what = measurable(self._model, models)
        gpus = gpus_of(snapshot, models)
        for gpu in gpus:
            seen = LevelSeen(gpu=gpu.id, pressure=gpu.pressure, thermal=gpu.thermal)
            if seen not in self._levels:
                self._levels.append(seen)
        self._ended_early = self._ended_early or critical(gpus)

    async def _submit(self) -> JobRecord | None:
        """One more request in the queue; None if it does not take any now."""
        number = self._submitted
        asked = JobRequest(
            prompt=_prompt(f"{self._id[:4]}{number}", self._parameters.prompt_tokens),
            model=self._model,
            max_tokens=self._parameters.max_tokens,
            priority=0,
            fallback=False,
            caller=CALLER,
            max_attempts=1,
            deadline_s=self._parameters.duration_s + GRACE_S,
            temperature=0.0,
            params={"ignore_eos": True},
            metadata={"benchmark_id": self._id},
        )
        new = new_job(asked, self._parts.settings, new_job_id(), self._request_id)
        self._open.add(new.id)
        try:
            submitted = await self._parts.jobs.submit(new, bound=self._parts.settings.queue.bound)
        except StoreUnavailable as error:
            # It may have been taken all the same: cancelling it in the end makes sure.
            logger.debug("benchmark {}: not submitted: {}", self._id, error)
            return None
        if submitted.outcome is not SubmitOutcome.ACCEPTED:
            self._open.discard(new.id)
            return None
        return JobRecord(new.id, {**new.fields, "state": JobState.QUEUED.value, "target": asked.target})

    async def _follow(self, record: JobRecord) -> JobRecord | None:
        """The job once it has ended; when no more is wanted, what did not start by then is cancelled."""
        while True:
            found = await wait_for_end(
                self._parts.jobs.get, self._parts.feed, record, within_s=_SLICE_S, client_left=self._stopping
            )
            if found is None or found.state in FINAL_STATES:
                return found
            record = found
            late_s = time.monotonic() - self._until
            unwanted = late_s > 0 or self._ended_early is not None
            if self._interrupted or late_s > GRACE_S or (unwanted and record.state is JobState.QUEUED):
                await self._insist(partial(self._cancel, record.job_id))
                return await self._ended(record.job_id)

    async def _ended(self, job_id: str) -> JobRecord | None:
        """What became of a cancelled job; None while its router still closes it, or Redis is away."""
        try:
            found = await self._parts.jobs.get(job_id)
        except StoreUnavailable:
            return None
        return found if found is not None and found.state in FINAL_STATES else None

    async def _stopping(self) -> bool:
        return self._interrupted

    async def _cancel(self, job_id: str) -> None:
        await self._parts.jobs.cancel(job_id, f"benchmark {self._id} is over")

    async def _cancel_open(self) -> None:
        for job_id in list(self._open):
            await self._cancel(job_id)
            self._open.discard(job_id)

    async def _record(self) -> None:
        found = figures(self._results).model_copy(
            update={
                "levels": self._levels,
                "yielded_ms": round(self._yielded_s * 1000),
                "ended_early": self._ended_early,
            }
        )
        view = await self._parts.fleet.view(heads=0)
        simulated = any(
            entry.registration.name in found.served_by
            and (entry.registration.simulated or entry.fields.get("simulated") == "1")
            for entry in view.models
        )
        found = found.model_copy(update={"simulated": simulated})
        state, error = self._stopped or verdict(found)
        fields = {"result": found.model_dump_json(), "requests": str(found.requests)}
        if error is not None:
            fields |= {"error_type": error.type, "error_detail": error.detail}
        only = next(iter(found.served_by)) if len(found.served_by) == 1 else None
        await self._parts.store.end(
            self._id,
            self._what,
            state,
            fields,
            registration=only,
            learned=learned(found, self._id, self._parameters.concurrency),
        )
        logger.info("benchmark {} of {} {}: {}", self._id, self._model, state, found)

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Repeat a replay-safe write for as long as Redis may need to come back."""
        limit = time.monotonic() + _RECORD_S
        while True:
            try:
                return await write()
            except StoreUnavailable as error:
                if time.monotonic() >= limit or self._parts.feed.closed:
                    logger.warning("benchmark {} could not be recorded: {}", self._id, error)
                    return None
                await asyncio.sleep(_YIELD_S)


def _prompt(head: str, tokens: int) -> str:
    """Text of about this many tokens that begins like no other: a cached prefix would not be measured."""
    words = random.Random(head).choices(_WORDS, k=tokens * 2)
    return " ".join([head, *words])[: tokens * 4]
