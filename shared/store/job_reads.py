"""Jobs as they stand in Redis: one, the newest, how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from shared.keys import Keys
from shared.states import JobState
from shared.store.client import translating
from shared.store.records import JobRecord

_PAGE = 200


class JobReads:
    """Reads of jobs; raises ``StoreUnavailable`` when Redis can't serve now."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def get(self, job_id: str, *, with_result: bool = True) -> JobRecord | None:
        """One job as it stands, None if unknown (or kept no longer)."""
        if not is_id(job_id):
            return None
        async with translating(self._redis):
            fields: Any = await self._redis.hgetall(self._keys.job(job_id))
            if "state" not in fields:
                return None
            record = JobRecord(job_id, fields)
            if record.state is JobState.QUEUED:
                return await self._with_queue(record)
            if with_result and record.state is JobState.SUCCEEDED:
                result: Any = await self._redis.get(self._keys.result(job_id))
                return JobRecord(job_id, fields, result=result)
        return record

    async def list_newest(
        self, *, state: JobState | None, limit: int, caller: str | None = None
    ) -> list[JobRecord]:
        """The newest jobs, optionally of one state and one caller, newest first, without results."""
        found: list[JobRecord] = []
        # By score, not by rank: ranks move while jobs come in and forgotten ones are dropped.
        before = "+inf"
        async with translating(self._redis):
            while len(found) < limit:
                page: Any = await self._redis.zrange(
                    self._keys.static("index"),
                    before,
                    "-inf",
                    desc=True,
                    byscore=True,
                    withscores=True,
                    offset=0,
                    num=_PAGE,
                )
                if not page:
                    break
                records = await self._page([job_id for job_id, _ in page], state)
                found += [one for one in records if caller in (None, one.fields.get("caller"))]
                before = f"({page[-1][1]:.3f}"
        return found[:limit]

    async def counts(self) -> tuple[int, int]:
        """How many jobs wait and how many run."""
        async with translating(self._redis):
            pipe = self._redis.pipeline(transaction=True)
            pipe.zcard(self._keys.static("live"))
            pipe.zcard(self._keys.static("leases"))
            live, running = await pipe.execute()
        return live - running, running

    async def _page(self, ids: Sequence[str], state: JobState | None) -> list[JobRecord]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hgetall(self._keys.job(job_id))
        pages = await pipe.execute()
        records = [
            JobRecord(job_id, fields) for job_id, fields in zip(ids, pages, strict=True) if "state" in fields
        ]
        # The index outlives the jobs' hashes: forget what is kept no longer.
        gone = [job_id for job_id, fields in zip(ids, pages, strict=True) if "state" not in fields]
        if gone:
            await self._redis.zrem(self._keys.static("index"), *gone)
        return [record for record in records if state is None or record.state is state]

    async def _with_queue(self, record: JobRecord) -> JobRecord:
        target = record.fields["target"]
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrank(self._keys.ready(target), record.job_id)
        pipe.hget(self._keys.static("holds"), target)
        rank, hold = await pipe.execute()
        return JobRecord(record.job_id, record.fields, None if rank is None else int(rank) + 1, hold or "")


def is_id(job_id: str) -> bool:
    """Whether this can be a job's id."""
    # An id from a URL such as "<id>:request" would lead to a key of another kind.
    return ":" not in job_id
