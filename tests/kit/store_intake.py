"""A router's intake for tests: it reads the request stream and settles what it reads, as the service does."""

from __future__ import annotations

from shared.store.records import AdmitOutcome, StreamEntry
from shared.store.streams import Intake
from tests.kit.store_fixture import BOUND, Store, new_job


class Router:
    """One router's reading end, and what it does with an entry."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.intake = Intake(store.reader, store.keys, name)

    async def settle(self, entries: list[StreamEntry]) -> list[str]:
        """Settle what was read; the ids of the jobs, or why there is none."""
        return [await self._settle(entry) for entry in entries]

    async def _settle(self, entry: StreamEntry) -> str:
        jobs = self.store.jobs
        if "job_id" in entry.fields:
            return (await jobs.admit_known(entry.id, entry.fields["job_id"]))[1]
        if "prompt" not in entry.fields:
            await jobs.admit_dead(entry.id, "no prompt", entry.fields)
            return "DEAD"
        job = new_job(f"x-{entry.id}")
        outcome, job_id = await jobs.admit_new(entry.id, job, bound=BOUND, raw="{}")
        return job_id if outcome is AdmitOutcome.CREATED else outcome.value


async def ask(store: Store, count: int) -> list[str]:
    """Write requests by hand; the ids that their jobs will get."""
    return [f"x-{await store.request(v='1', prompt='hi')}" for _ in range(count)]


async def pending(store: Store) -> list[str]:
    """The entries delivered and not settled, oldest first."""
    return [entry.split()[1] for entry in (await store.dump()).pending[store.keys.requests]]
