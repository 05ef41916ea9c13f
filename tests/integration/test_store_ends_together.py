"""Ends that are recorded at the same time: fewer calls, and each as if it were alone."""

from __future__ import annotations

import asyncio

from redis.exceptions import ResponseError

from shared.store.records import Finished, FinishOutcome
from tests.kit.store_fixture import Store

_JOBS = 12


async def _run(store: Store) -> list[str]:
    ids = [f"j{number}" for number in range(_JOBS)]
    for job_id in ids:
        await store.start(job_id, f"n-{job_id}")
    return ids


async def _end_all(store: Store, ids: list[str]) -> list[Finished | BaseException]:
    ends = (store.jobs.finish(one, 1, result=f'"{one}"', fields={}, learned={}) for one in ids)
    return await asyncio.gather(*ends, return_exceptions=True)


async def _calls(store: Store) -> int:
    return int((await store.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])


async def test_each_is_recorded_with_its_own_result(store: Store) -> None:
    ids = await _run(store)
    before = await _calls(store)
    ends = await _end_all(store, ids)

    assert await _calls(store) - before == 2
    assert [end.outcome for end in ends if isinstance(end, Finished)] == [FinishOutcome.FINISHED] * _JOBS
    assert [(await store.job(one)).result for one in ids] == [f'"{one}"' for one in ids]
    assert (await store.model())["in_flight"] == "0"


async def test_one_that_cannot_be_recorded_takes_no_other_along(store: Store) -> None:
    ids = await _run(store)
    # What somebody wrote by hand where a number belongs.
    await store.redis.hset(store.keys.job("j5"), "started_ms", "yesterday")
    ends = await _end_all(store, ids)

    failed = [one for one, end in zip(ids, ends, strict=True) if isinstance(end, ResponseError)]
    assert failed == ["j5"]
    assert {await store.state(one) for one in ids if one != "j5"} == {"succeeded"}


async def test_a_stale_one_among_them_is_told_so(store: Store) -> None:
    ids = await _run(store)
    await store.fail("j7", 1)
    ends = await _end_all(store, ids)

    stale = [
        one
        for one, end in zip(ids, ends, strict=True)
        if isinstance(end, Finished) and end.outcome is FinishOutcome.STALE
    ]
    assert stale == ["j7"]
