"""Order of the queue: who comes first, where a job stands, why it waits, and how jobs are listed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.states import JobState
from tests.kit.store_fixture import Store, open_store

TARGET = "auto:Chat"
CALLERS = (None, "ann", "bob", "cem")
_ORDERLY = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


async def _heads(store: Store, count: int) -> list[str]:
    """The next jobs as a router sees them."""
    targets = (await store.fleet.view(heads=count)).targets
    return [head.job_id for target in targets if target.target == TARGET for head in target.heads]


async def _claim_all(store: Store) -> list[str]:
    """Take the head of the queue again and again; the ids in the order that they came up."""
    taken: list[str] = []
    while heads := await _heads(store, 1):
        assert (await store.claim(heads[0], f"all-{heads[0]}")).outcome == "CLAIMED"
        taken += heads
    return taken


@asynccontextmanager
async def _emptied(url: str) -> AsyncIterator[Store]:
    async with open_store(url) as store:
        await store.redis.flushall()
        yield store
        await store.check()


async def test_jobs_of_one_priority_come_up_in_the_order_they_came_in(store: Store) -> None:
    """Also within one millisecond, and whatever their ids are."""
    names = [f"{number * 7919 % 100:02d}" for number in range(60)]
    for name in names:
        await store.submit(name)
    assert await _claim_all(store) == names


@_ORDERLY
@given(boosts=st.lists(st.integers(0, 9), min_size=2, max_size=25))
def test_nobody_is_overtaken_by_more_than_the_boost_gap(redis_url: str, boosts: list[int]) -> None:
    """With 1 ms a step instead of 30 s; arrival is when Redis accepted the job."""

    async def play() -> None:
        async with _emptied(redis_url) as store:
            for number, boost in enumerate(boosts):
                await store.submit(f"j{number}", boost_ms=boost)
            at = (await store.dump()).zsets[store.keys.static("index")]
            boost_of = {f"j{number}": boost for number, boost in enumerate(boosts)}
            order = await _claim_all(store)
            assert sorted(order) == sorted(boost_of)
            for place, first in enumerate(order):
                for second in order[place + 1 :]:
                    # Places are stored in microseconds: two roundings.
                    assert at[first] - at[second] <= boost_of[first] - boost_of[second] + 0.002

    asyncio.run(play())


@_ORDERLY
@given(callers=st.lists(st.sampled_from(CALLERS), min_size=2, max_size=25))
def test_callers_of_one_priority_take_turns(redis_url: str, callers: list[str | None]) -> None:
    """While several have jobs waiting, none is ever two ahead of another; each keeps its own order."""

    async def play() -> None:
        async with _emptied(redis_url) as store:
            for number, caller in enumerate(callers):
                await store.submit(f"{number}", caller=caller)
            order = [int(job) for job in await _claim_all(store)]
        turns = Counter[str | None]()
        left = Counter(callers)
        for job in order:
            turns[callers[job]] += 1
            left[callers[job]] -= 1
            waiting = [turns[caller] for caller in left if left[caller] > 0]
            assert not waiting or max(turns.values()) - min(waiting) <= 1
        for caller in set(callers):
            own = [job for job in order if callers[job] == caller]
            assert own == sorted(own)

    asyncio.run(play())


_STEP = st.tuples(st.sampled_from(CALLERS), st.sampled_from([0, 30_000, 150_000, 270_000]))


@_ORDERLY
@given(jobs=st.lists(_STEP, min_size=1, max_size=20), back=st.integers(0, 3), gone=st.integers(0, 19))
def test_the_heads_that_a_router_reads_ahead_come_up_in_just_that_order(
    redis_url: str, jobs: list[tuple[str | None, int]], back: int, gone: int
) -> None:
    """Also after some were taken and came back, and one was cancelled."""

    async def play() -> None:
        async with _emptied(redis_url) as store:
            for number, (caller, boost_ms) in enumerate(jobs):
                await store.submit(f"{number}", caller=caller, boost_ms=boost_ms)
            taken = [await _take(store) for _ in range(min(back, len(jobs)))]
            await store.jobs.cancel(f"{gone}", "not needed")
            for job in taken:
                await store.fail(job)
            await store.check()
            ahead = await _heads(store, 30)
            assert await _claim_all(store) == ahead

    async def _take(store: Store) -> str:
        (head,) = await _heads(store, 1)
        await store.claim(head, head)
        return head

    asyncio.run(play())


async def test_a_more_urgent_job_comes_first_whoever_waits(store: Store) -> None:
    urgency = {
        "low": (0, "ann"),
        "normal": (150_000, "bob"),
        "high": (270_000, None),
        "higher": (280_000, "ann"),
    }
    for name, (boost_ms, caller) in urgency.items():
        await store.submit(name, boost_ms=boost_ms, caller=caller)
    assert await _claim_all(store) == ["higher", "high", "normal", "low"]


async def test_a_greedy_caller_leaves_room_for_others(store: Store) -> None:
    for number in range(5):
        await store.submit(f"greedy-{number}", caller="greedy")
    for number in range(2):
        await store.submit(f"modest-{number}", caller="modest")
    order = ["greedy-0", "modest-0", "greedy-1", "modest-1", "greedy-2", "greedy-3", "greedy-4"]
    assert await _heads(store, 10) == order
    assert await _claim_all(store) == order


async def test_a_caller_who_leaves_passes_its_turn_on_to_its_next_job(store: Store) -> None:
    for name in ("a0", "a1", "a2"):
        await store.submit(name, caller="ann")
    await store.submit("b0", caller="bob")
    await store.jobs.cancel("a0", "not needed")
    assert await _claim_all(store) == ["a1", "b0", "a2"]


async def test_a_callers_line_goes_with_its_last_job(store: Store) -> None:
    await store.submit("a", caller="ann")
    assert [name for name in (await store.dump()).zsets if ":caller:" in name]
    await store.claim("a")
    assert not [name for name in (await store.dump()).zsets if ":caller:" in name]


async def test_names_made_of_colons_make_no_two_callers_one(store: Store) -> None:
    await store.submit("a", target="x:y", caller="z")
    await store.submit("b", target="x", caller="y:z")
    await store.submit("c", target="x:y:z", caller=None)
    assert len([name for name in (await store.dump()).zsets if ":caller:" in name]) == 3


async def test_a_retried_job_keeps_the_place_that_it_came_for(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.submit(name)
    await store.claim("a")
    await store.fail("a")
    assert await _heads(store, 9) == ["a", "b", "c"]


async def test_a_queue_and_its_target_go_with_their_last_job(store: Store) -> None:
    await store.submit("a", target="beta")
    await store.jobs.hold("a", "busy", "all are busy", ())
    assert [one.target for one in (await store.fleet.view(heads=1)).targets] == ["beta"]
    await store.claim("a")
    assert (await store.fleet.view(heads=1)).targets == ()
    assert (await store.dump()).hashes.get(store.keys.static("holds")) is None


async def test_a_waiting_job_knows_its_place(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.submit(name)
    assert [(await store.job(name)).position for name in ("a", "b", "c")] == [1, 2, 3]
    await store.claim("a")
    assert [(await store.job(name)).position for name in ("a", "b", "c")] == [None, 1, 2]
    assert await store.jobs.counts() == (2, 1)


async def test_jobs_are_listed_newest_first_all_or_those_of_one_state(store: Store) -> None:
    for number in range(6):
        await store.submit(f"j{number}")
    await store.claim("j4")
    await store.jobs.cancel("j1", "done")
    listed = [record.job_id for record in await store.jobs.list_newest(state=None, limit=4)]
    assert listed == ["j5", "j4", "j3", "j2"]
    cancelled = await store.jobs.list_newest(state=JobState.CANCELLED, limit=4)
    assert [record.job_id for record in cancelled] == ["j1"]
    assert await store.jobs.list_newest(state=None, limit=0) == []


async def test_a_list_skips_none_where_others_are_forgotten(store: Store) -> None:
    """Forgotten ones are dropped from the index while it is read, page by page."""
    names = [f"j{number}" for number in range(450)]
    await asyncio.gather(*(store.submit(name) for name in names))
    arrived = [str(name) for name in await store.redis.zrange(store.keys.static("index"), 0, -1, desc=True)]
    for name in arrived[50:150]:
        await store.jobs.cancel(name, "done")
        await store.redis.delete(store.keys.job(name), store.keys.request(name))
    kept = arrived[:50] + arrived[150:]
    assert [one.job_id for one in await store.jobs.list_newest(state=None, limit=1000)] == kept
    assert await store.redis.zcard(store.keys.static("index")) == 350


async def test_a_hold_is_said_once_for_each_reason(store: Store) -> None:
    await store.submit()
    await store.submit("j2")
    calls = [("j1", "busy"), ("j1", "busy"), ("j2", "busy"), ("j1", "critical"), ("j1", "busy")]
    answers = [await store.jobs.hold(job, code, f"{code}!", ("reason", code)) for job, code in calls]
    assert answers == ["HELD", "SAME", "SAME", "HELD", "HELD"]
    assert await store.kinds() == ["queued", "held", "held", "held"]
    assert '"code":"busy"' in (await store.job("j2")).hold
    assert len((await store.dump()).streams[store.keys.decisions]) == 3


@pytest.mark.parametrize(("code", "kept"), [("model_busy", True), ("pressure_critical", False)])
async def test_a_hold_outlives_a_claim_only_where_it_is_still_true(
    store: Store, code: str, kept: bool
) -> None:
    """The model is busy for the next one as well; a critical level would have kept the first one too."""
    await store.submit()
    await store.submit("j2")
    await store.jobs.hold("j1", code, "wait", ())
    await store.claim()
    assert bool((await store.job("j2")).hold) == kept
    assert "hold_code" not in (await store.job("j1")).fields
