"""Jobs that an api has decided on and started: the router that reads of one only has to run it (ADR 0020)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from loguru import logger

from services.router.attempts import Attempt, Cut
from services.router.dispatcher import Dispatcher
from shared.config import Settings
from shared.persist import persist
from shared.placement.picture import Pictures
from shared.states import JobState
from shared.store.grants import grant_of
from shared.store.jobs import JobStore
from shared.store.records import StreamEntry


class Handover:
    """Runs what was handed over, or gives it back where this router may not."""

    def __init__(
        self, jobs: JobStore, dispatcher: Dispatcher, pictures: Pictures, settings: Settings, router: str
    ) -> None:
        self._jobs = jobs
        self._dispatcher = dispatcher
        self._pictures = pictures
        self._settings = settings
        self._router = router
        self._stopping = False
        self._under_way: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Run nothing more."""
        self._stopping = True

    def take(self, entry: StreamEntry, *, in_doubt: bool) -> None:
        """Run the job of an entry for which ``is_handed``; ``in_doubt``: it may be another's by now."""
        try:
            attempt = _attempt(entry)
        except (KeyError, ValueError) as error:
            # Its lease runs out, and it is queued again.
            logger.warning("request entry {} hands over nothing that can be read: {!r}", entry.id, error)
            return
        if self._dispatcher.runs(attempt.grant.job_id):
            return  # its entry is read again where it could not be acked
        if self._is_full:
            self._in_background(self._give_back(attempt))
        elif in_doubt or "body" not in entry.fields:
            self._in_background(self._take_first(attempt))
        else:
            self._start(attempt)

    @property
    def _is_full(self) -> bool:
        return self._stopping or self._dispatcher.running >= self._settings.router.max_in_flight

    async def settled(self) -> None:
        """Wait until nothing is under way between a ``take`` and its start or its return."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _start(self, attempt: Attempt) -> None:
        if self._dispatcher.runs(attempt.grant.job_id):
            return
        self._pictures.took(attempt.grant.model)
        self._dispatcher.start(attempt)

    async def _take_first(self, attempt: Attempt) -> None:
        grant, lease_ms = attempt.grant, round(self._settings.router.lease_s * 1000)
        taken = await persist(lambda: self._jobs.take(grant.job_id, grant.attempt, self._router, lease_ms))
        if taken is None:
            logger.debug("job={} was handed over, but is another's by now", grant.job_id)
            return
        attempt.body, attempt.deadline_in_s = taken.body, taken.deadline_in_ms / 1000
        if self._is_full:
            await self._give_back(attempt)
        else:
            self._start(attempt)

    async def _give_back(self, attempt: Attempt) -> None:
        await self._dispatcher.give_back(attempt, Cut.RELEASED.value)

    def _in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_told(work))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


async def _told(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:  # a bug of ours: the job's lease runs out, and it is queued again
        logger.exception("a job that was handed over could not be taken or given back")


def is_handed(entry: StreamEntry) -> bool:
    """Whether an entry is about a job that some router has to run, as far as can be seen."""
    fields = entry.fields
    return fields.get("state") == JobState.RUNNING and "attempt" in fields


def _attempt(entry: StreamEntry) -> Attempt:
    fields = entry.fields
    grant = grant_of(fields)
    return Attempt(
        grant,
        fields.get("body", ""),
        (int(fields["deadline_ms"]) - grant.granted_ms) / 1000,
        request_id=fields.get("request_id", ""),
        queue_ms=0.0,
        handed=True,
    )
