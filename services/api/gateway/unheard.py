"""Jobs whose clients left before it was known whether they were accepted: nobody would ever end them."""

from __future__ import annotations

import asyncio

from loguru import logger

from services.api.gateway.fastpath import FIRST_ATTEMPT
from services.api.gateway.outcomes import Cut, failure_of_cut
from shared.persist import persist
from shared.store.jobs import SUBMIT_PATIENCE_S, JobStore
from shared.store.records import CancelOutcome

_MOST = 1000
_SUBMITTED_BY_S = SUBMIT_PATIENCE_S + 1.0
"""After this a submission that is still under way writes nothing: its patience, and a second for clocks."""


class Unheard:
    """Takes such jobs out of the queue in the background, whenever Redis gets to their submission."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def cancel(self, job_id: str) -> None:
        """Cancel this job, now or once its submission has come through.

        Where Redis is away for long, only the first of many: the leases of the others run out by themselves.
        """
        if len(self._tasks) >= _MOST:
            return
        task = asyncio.get_running_loop().create_task(self._cancel(job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End what is under way: with this api's heartbeat the jobs attached to it end too."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cancel(self, job_id: str) -> None:
        outcome = await self._once(job_id)
        if outcome is CancelOutcome.UNKNOWN:
            await asyncio.sleep(_SUBMITTED_BY_S)
            outcome = await self._once(job_id)
        if outcome is CancelOutcome.REQUESTED:
            # Started at once, by our own decision: its grant was in the reply that nobody heard.
            await persist(lambda: self._jobs.fail(job_id, FIRST_ATTEMPT, failure_of_cut(Cut.GONE)))
        logger.debug("job={} was given up while it was submitted: {}", job_id, outcome)

    async def _once(self, job_id: str) -> CancelOutcome:
        # One at a time: while Redis is away they must not take the connections of those who still wait.
        async with self._turn:
            outcome, _ = await persist(lambda: self._jobs.cancel(job_id, "its client left"))
        return outcome
