"""What an API key may have at once and a minute: counted in Redis, by job, whatever becomes of the job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shared.store.records import FailKind, KeyLimits, SubmitOutcome, Submitted
from tests.kit.store_fixture import Store, new_job

ONE_WAITS = KeyLimits("alice", queued=1)
ONE_AT_ONCE = KeyLimits("alice", in_flight=1)


async def _submit(store: Store, job_id: str, limits: KeyLimits | None) -> Submitted:
    return await store.jobs.submit(new_job(job_id, limits=limits), bound=100)


async def _sweep(store: Store) -> None:
    await store.lapse_lease()
    await store.jobs.sweep(grace_ms=0)


async def _expire(store: Store) -> None:
    await store.pass_deadline(ago_ms=300_000)
    await store.jobs.expire(overstay_ms=0)


ENDS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "finish": lambda store: store.finish(),
    "fail": lambda store: store.fail(kind=FailKind.FAILED),
    "dead": lambda store: store.fail(charge=True),
    "sweep": _sweep,
    "expire": _expire,
}
BACK: dict[str, Callable[[Store], Awaitable[object]]] = {
    "retry": lambda store: store.fail(),
    "delay": lambda store: store.fail(delay_ms=60_000),
    "release": lambda store: store.fail(kind=FailKind.RELEASED),
    "sweep": _sweep,
}


async def test_a_job_more_than_a_key_may_have_in_flight_is_refused_and_leaves_nothing_behind(
    store: Store,
) -> None:
    await _submit(store, "j1", ONE_AT_ONCE)
    before = await store.dump()

    refused = await _submit(store, "j2", ONE_AT_ONCE)

    assert (refused.outcome, refused.limit) == (SubmitOutcome.LIMITED, "in_flight")
    assert await store.dump() == before


async def test_a_running_job_is_in_flight_and_waits_no_more(store: Store) -> None:
    await _submit(store, "j1", KeyLimits("alice", in_flight=2, queued=1))
    await store.claim()

    second = await _submit(store, "j2", KeyLimits("alice", in_flight=2, queued=1))
    third = await _submit(store, "j3", KeyLimits("alice", in_flight=2, queued=1))

    assert second.outcome is SubmitOutcome.ACCEPTED
    assert (third.outcome, third.limit) == (SubmitOutcome.LIMITED, "in_flight")


async def test_a_job_more_than_may_wait_is_refused_however_few_run(store: Store) -> None:
    await _submit(store, "j1", ONE_WAITS)
    refused = await _submit(store, "j2", ONE_WAITS)
    assert (refused.outcome, refused.limit) == (SubmitOutcome.LIMITED, "queued")


@pytest.mark.parametrize("end", ENDS)
async def test_however_a_job_ends_its_place_is_free_again(store: Store, end: str) -> None:
    fields = {"max_attempts": "1"}
    await store.jobs.submit(new_job("j1", limits=ONE_AT_ONCE, fields=fields), bound=100)
    await store.claim()
    await ENDS[end](store)

    assert (await _submit(store, "j2", ONE_AT_ONCE)).outcome is SubmitOutcome.ACCEPTED


async def test_a_cancelled_job_that_waited_gives_its_place_back(store: Store) -> None:
    await _submit(store, "j1", ONE_WAITS)
    await store.jobs.cancel("j1", "no longer needed")
    assert (await _submit(store, "j2", ONE_WAITS)).outcome is SubmitOutcome.ACCEPTED


@pytest.mark.parametrize("back", BACK)
async def test_a_job_that_comes_back_into_the_queue_waits_again(store: Store, back: str) -> None:
    await _submit(store, "j1", ONE_WAITS)
    await store.claim()
    await BACK[back](store)

    assert (await _submit(store, "j2", ONE_WAITS)).limit == "queued"


async def test_so_many_a_minute_are_accepted_and_the_next_when_the_oldest_is_a_minute_old(
    store: Store,
) -> None:
    limits = KeyLimits("alice", per_minute=2)
    for job in ("j1", "j2"):
        assert (await _submit(store, job, limits)).outcome is SubmitOutcome.ACCEPTED
        await store.jobs.cancel(job, "ended ones count too")

    refused = await _submit(store, "j3", limits)
    assert (refused.outcome, refused.limit) == (SubmitOutcome.LIMITED, "per_minute")
    assert 0 < refused.again_ms <= 60_000

    minute = store.keys.of("key_minute", "alice")
    await store.redis.zincrby(minute, -60_000, "j1")
    assert (await _submit(store, "j4", limits)).outcome is SubmitOutcome.ACCEPTED
    assert (await _submit(store, "j5", limits)).limit == "per_minute"


async def test_a_refused_job_does_not_count_for_its_minute(store: Store) -> None:
    limits = KeyLimits("alice", queued=1, per_minute=2)
    await _submit(store, "j1", limits)
    for _ in range(3):
        assert (await _submit(store, "j2", limits)).limit == "queued"
    await store.claim()
    assert (await _submit(store, "j3", limits)).outcome is SubmitOutcome.ACCEPTED


async def test_a_repeated_submission_is_counted_once(store: Store) -> None:
    limits = KeyLimits("alice", in_flight=2, per_minute=2)
    for job in ("j1", "j1", "j1", "j2", "j2"):
        assert (await _submit(store, job, limits)).outcome is SubmitOutcome.ACCEPTED
    assert (await _submit(store, "j3", limits)).outcome is SubmitOutcome.LIMITED


async def test_many_at_once_never_get_past_a_limit(store: Store) -> None:
    limits = KeyLimits("alice", in_flight=5)
    outcomes = await asyncio.gather(*(_submit(store, f"j{number}", limits) for number in range(20)))
    assert [found.outcome for found in outcomes].count(SubmitOutcome.ACCEPTED) == 5


async def test_one_key_does_not_use_up_anothers_limits_nor_do_jobs_without_a_key(store: Store) -> None:
    for number in range(3):
        await _submit(store, f"free-{number}", None)
    assert (await _submit(store, "j1", ONE_AT_ONCE)).outcome is SubmitOutcome.ACCEPTED
    assert (await _submit(store, "j2", KeyLimits("bob", in_flight=1))).outcome is SubmitOutcome.ACCEPTED


async def test_a_job_that_somebody_deleted_by_hand_does_not_hold_its_place_for_ever(store: Store) -> None:
    await _submit(store, "j1", ONE_AT_ONCE)
    await store.redis.delete(store.keys.job("j1"), store.keys.request("j1"))

    assert (await _submit(store, "j2", ONE_AT_ONCE)).outcome is SubmitOutcome.ACCEPTED

    await store.redis.flushall()  # what else is left of that job is not this test's matter
