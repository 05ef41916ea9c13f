"""Admission: how many may wait, however many submit at once, and what an idempotency key stands for."""

from __future__ import annotations

import asyncio

import pytest

from shared.store.records import SubmitOutcome
from tests.kit.store_fixture import BOUND, Store, new_job, open_store


@pytest.mark.parametrize("bound", [1, 50])
async def test_the_bound_is_exact_however_many_submit_at_once(redis_url: str, bound: int) -> None:
    async with open_store(redis_url) as one, open_store(redis_url) as two, open_store(redis_url) as three:
        calls = [
            store.jobs.submit(new_job(f"{name}-{number}"), bound=bound)
            for number in range(40)
            for name, store in (("a", one), ("b", two), ("c", three))
        ]
        outcomes = [(await call).outcome for call in asyncio.as_completed(calls)]
        assert outcomes.count(SubmitOutcome.ACCEPTED) == bound
        assert outcomes.count(SubmitOutcome.FULL) == 120 - bound
        assert await one.jobs.counts() == (bound, 0)
        assert await one.redis.xlen(one.keys.requests) == bound
        await one.check()


async def test_a_refused_job_leaves_nothing_behind(store: Store) -> None:
    await store.submit("waiting")
    before = await store.dump()
    refused = await store.jobs.submit(new_job("j1", caller="ann"), bound=1, idempotency="key", digest="d")
    assert (refused.outcome, refused.job_id, refused.ended_per_s) == (SubmitOutcome.FULL, "", 0.0)
    assert await store.dump() == before


async def test_running_jobs_don_t_count_against_the_bound_but_delayed_ones_do(store: Store) -> None:
    await store.start("running", "r")
    assert await store.submit("a", bound=1) == "ACCEPTED"
    assert await store.submit("b", bound=1) == "FULL"
    await store.claim("a", "a")
    await store.fail("a", delay_ms=60_000)
    assert await store.submit("b", bound=1) == "FULL"
    await store.jobs.cancel("a", "make room")
    assert await store.submit("b", bound=1) == "ACCEPTED"


async def test_a_full_queue_says_how_fast_it_drains(store: Store) -> None:
    for number in range(12):
        await store.start(f"j{number}", f"n{number}")
        await store.finish(f"j{number}")
    await store.submit("waiting")
    refused = await store.jobs.submit(new_job("one-more"), bound=1)
    # Over the current minute and the one before it: 12 jobs in 60 to 120 seconds.
    assert 12 / 120 <= refused.ended_per_s <= 12 / 60


async def test_the_same_idempotency_key_answers_the_first_job(store: Store) -> None:
    async def submit(job_id: str, digest: str) -> tuple[str, str]:
        found = await store.jobs.submit(new_job(job_id), bound=BOUND, idempotency="key", digest=digest)
        return found.outcome.value, found.job_id

    assert await submit("first", "d1") == ("ACCEPTED", "first")
    assert await submit("first", "d1") == ("ACCEPTED", "first")
    before = await store.dump()
    assert await submit("second", "d1") == ("DUPLICATE", "first")
    assert await submit("third", "d2") == ("MISMATCH", "first")
    assert await store.dump() == before
    await store.jobs.cancel("first", "done")
    assert await submit("fourth", "d1") == ("DUPLICATE", "first")


async def test_a_key_is_free_again_when_its_job_is_forgotten(store: Store) -> None:
    await store.jobs.submit(new_job("first"), bound=BOUND, idempotency="key", digest="d")
    await store.jobs.cancel("first", "done")
    await store.forget("first")
    found = await store.jobs.submit(new_job("second"), bound=BOUND, idempotency="key", digest="other")
    assert (found.outcome, found.job_id) == (SubmitOutcome.ACCEPTED, "second")


async def test_a_full_queue_still_answers_for_what_it_has_accepted(store: Store) -> None:
    await store.jobs.submit(new_job("first"), bound=1, idempotency="key", digest="d")
    assert await store.submit("first", bound=1) == "ACCEPTED"
    again = await store.jobs.submit(new_job("second"), bound=1, idempotency="key", digest="d")
    assert again.outcome is SubmitOutcome.DUPLICATE
