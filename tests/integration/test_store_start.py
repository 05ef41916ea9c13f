"""Accepting a job and starting it in one step, by a decision of the api that holds its client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import ResponseError

from shared.keys import ROUTER_GROUP
from shared.registry import Registration
from shared.store.records import (
    ClaimOrder,
    FailOutcome,
    GpuClaim,
    KeyLimits,
    ModelFailure,
    RenewOutcome,
    Submitted,
)
from tests.kit.store_fixture import BOUND, GPU, HOLDER, MODEL, Store, new_job, order

STARTED, ACCEPTED = "STARTED", "ACCEPTED"


async def _ask(store: Store, job_id: str = "j1", start: ClaimOrder | None = None, **changes: Any) -> str:
    """Accept an attached job with a decision; how it went."""
    return str((await _submitted(store, job_id, start, **changes)).outcome)


async def _submitted(
    store: Store, job_id: str = "j1", start: ClaimOrder | None = None, **changes: Any
) -> Submitted:
    await store.set_holder(alive=True)
    job = new_job(job_id, attached_to=HOLDER, **changes)
    return await store.jobs.submit(job, bound=BOUND, start=start or order(job_id, f"n-{job_id}"))


async def test_a_job_that_nobody_waits_in_front_of_starts_at_once(store: Store) -> None:
    submitted = await _submitted(store)
    job = await store.job()

    assert str(submitted.outcome) == STARTED
    assert job.fields["started_ms"] == str(submitted.now_ms)
    assert (job.fields["state"], job.fields["attempt"], job.fields["router"]) == ("running", "1", "router-1")
    assert job.fields["decision_model"] == MODEL
    assert await store.kinds() == ["queued", "started"]
    assert (await store.model())["in_flight"] == "1"
    assert await store.redis.hget(store.keys.of("placement", GPU), "in_flight") == "1"
    assert await store.redis.zcard(store.keys.ready("auto:Chat")) == 0
    assert await store.redis.smembers(store.keys.static("targets")) == set()
    decisions: Any = await store.redis.xrange(store.keys.decisions)
    assert [(entry["job_id"], entry["attempt"], entry["action"]) for _, entry in decisions] == [
        ("j1", "1", "dispatch")
    ]
    requests: Any = await store.redis.xrange(store.keys.requests)
    assert [(entry["job_id"], entry["state"]) for _, entry in requests] == [("j1", "running")]
    assert await store.jobs.renew("j1", 1, 3000) is RenewOutcome.RENEWED


@pytest.mark.parametrize("name", ["attached", "requests", "events", "decisions", "live", "leases", "index"])
async def test_what_cannot_be_stored_whole_is_neither_stored_nor_started(store: Store, name: str) -> None:
    """Redis keeps what a script wrote before its error."""
    await store.set_holder(alive=True)
    await store.redis.set(store.keys.static(name), "not what it should be")
    before = await store.dump()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await store.jobs.submit(new_job(attached_to=HOLDER), bound=BOUND, start=order())
    assert await store.dump() == before
    await store.redis.flushall()


@pytest.mark.parametrize("group", [True, False])
async def test_it_starts_whether_or_not_a_router_ever_read_requests(store: Store, group: bool) -> None:
    await store.redis.delete(store.keys.requests)
    if group:
        await store.redis.xgroup_create(store.keys.requests, ROUTER_GROUP, mkstream=True)

    assert await _ask(store) == STARTED
    assert await store.redis.xlen(store.keys.requests) == 1


async def test_nobody_is_told_twice_what_the_reply_says(store: Store) -> None:
    await _ask(store)

    assert await store.redis.exists(store.keys.of("grants", HOLDER)) == 0


async def test_a_replay_starts_nothing_again(store: Store) -> None:
    start = order("j1", "once")
    assert [await _ask(store, "j1", start) for _ in range(3)] == [STARTED] * 3

    assert await store.kinds() == ["queued", "started"]
    assert (await store.model())["in_flight"] == "1"


async def test_a_replay_after_its_end_tells_of_no_attempt(store: Store) -> None:
    start = order("j1", "once")
    await _ask(store, "j1", start)
    await store.fail("j1", 1)

    assert await _ask(store, "j1", start) == ACCEPTED  # a retry: it waits, and the routers start it
    assert (await store.claim("j1", "n2")).attempt == 2
    assert await _ask(store, "j1", start) == ACCEPTED


async def test_whoever_waits_goes_first(store: Store) -> None:
    await store.attach("waiting", target="other")

    assert await _ask(store) == ACCEPTED
    assert (await store.state("waiting"), await store.state("j1")) == ("queued", "queued")
    assert (await store.model()).get("in_flight", "0") == "0"


async def _no_slot(store: Store) -> ClaimOrder:
    await _ask(store, "first")
    return order(limit=1)


async def _no_slot_on_the_gpu(store: Store) -> ClaimOrder:
    await _ask(store, "first")
    return order(gpus=(GpuClaim(GPU, 1, 0),))


async def _another_level(store: Store) -> ClaimOrder:
    await store.redis.hset(store.keys.of("gpu_level", GPU), "seq", "8")
    return order(gpus=(GpuClaim(GPU, 100, 7),))


async def _open_breaker(store: Store) -> ClaimOrder:
    shut_until = str(await store.now_ms() + 600_000)
    await store.redis.hset(store.keys.model(MODEL), "breaker_open_until_ms", shut_until)
    return order()


async def _another_registration(store: Store) -> ClaimOrder:
    entries = [Registration(name=MODEL, port=port, vram_gb=2.0) for port in (1001, 1002)]
    await store.fleet.register(entries[:1])
    (entry,) = (await store.fleet.view(heads=0)).models
    await store.fleet.register(entries[1:])
    return replace(order(), registration=entry.stored)


async def _no_registration(store: Store) -> ClaimOrder:
    await store.redis.delete(store.keys.models)
    return replace(order(), registration='{"name": "alpha"}')


@pytest.mark.parametrize(
    "otherwise",
    [
        _no_slot,
        _no_slot_on_the_gpu,
        _another_level,
        _open_breaker,
        _another_registration,
        _no_registration,
    ],
)
async def test_what_the_decision_assumed_is_checked_again(
    store: Store, otherwise: Callable[[Store], Awaitable[ClaimOrder]]
) -> None:
    start = await otherwise(store)

    assert await _ask(store, "j1", start) == ACCEPTED
    job = await store.job()
    assert (job.fields["state"], job.fields["attempt"]) == ("queued", "0")
    assert await store.kinds() == ["queued"]
    assert await store.redis.zcard(store.keys.ready("auto:Chat")) == 1


async def test_a_claim_by_an_older_registration_is_refused(store: Store) -> None:
    start = await _another_registration(store)
    await store.submit()

    (claimed,) = await store.jobs.claim_all([start])
    assert str(claimed.outcome) == "MOVED"
    (entry,) = (await store.fleet.view(heads=0)).models
    (claimed,) = await store.jobs.claim_all([replace(start, registration=entry.stored)])
    assert str(claimed.outcome) == "CLAIMED"


async def test_it_lives_on_like_any_other(store: Store) -> None:
    await _ask(store)
    assert await store.fail("j1", 1) == FailOutcome.QUEUED
    assert (await store.claim("j1", "n2")).attempt == 2
    assert await store.finish("j1", 2) == "FINISHED"

    assert await store.kinds() == ["queued", "started", "retried", "started", "succeeded"]
    assert (await store.model())["in_flight"] == "0"


async def test_a_success_writes_only_what_it_changes(store: Store) -> None:
    """Of a model that never fails all about its failures stays as it is."""
    for job in ("j1", "j2"):
        await _ask(store, job)
        await store.finish(job, 1)
    once = await store.model()
    for number in range(3, 24):
        await _ask(store, f"j{number}")
        await store.finish(f"j{number}", 1)
    often = await store.model()

    about_failures = ("failure_ema", "failure_ema_ms", "failures_in_row")
    assert [often[name] for name in about_failures] == [once[name] for name in about_failures]
    assert (often["outcomes"], often["samples"], often["in_flight"]) == ("1" * 20, "23", "0")


async def test_a_success_makes_up_for_failures(store: Store) -> None:
    for job in ("j1", "j2", "j3"):
        await _ask(store, job)
    await store.fail("j1", 1, model_failure=ModelFailure.FAILED)
    failed = await store.model()
    for job in ("j2", "j3"):
        await store.finish(job, 1)
    mended = await store.model()

    assert (failed["failures_in_row"], mended["failures_in_row"]) == ("1", "0")
    assert 0 < float(mended["failure_ema"]) < float(failed["failure_ema"]) / 2 + 0.01
    assert mended["outcomes"] == "011"


async def test_it_counts_against_its_key(store: Store) -> None:
    limits = KeyLimits("team", in_flight=1, queued=1)

    assert await _ask(store, "j1", limits=limits) == STARTED
    assert await _ask(store, "j2", limits=limits) == "LIMITED"
    await store.finish("j1", 1)
    assert await _ask(store, "j3", limits=limits) == STARTED


async def test_the_end_of_a_job_says_how_many_wait(store: Store) -> None:
    await _ask(store, "j1")
    await store.attach("j2")
    await store.finish("j1", 1)
    await store.start("j3", "n3")
    await store.claim("j2", "n2")
    await store.finish("j3", 1)

    late = await store.jobs.finish("j3", 1, result="{}", fields={}, learned={})
    assert (late.outcome, late.waiting) == ("FINISHED", 0)
    ends = [entry for entry in await store.events() if entry.fields["type"] == "job.succeeded"]
    assert [entry.fields["waiting"] for entry in ends] == ["1", "0"]
