"""What wakes routers: only what they have to act on, and none of it is missed."""

from __future__ import annotations

from typing import Any

from shared.keys import ROUTER_GROUP
from shared.store.streams import Follower, Intake, entries_of
from tests.kit.store_fixture import BOUND, HOLDER, Store, new_job, order


async def _start(store: Store, job_id: str = "j1") -> None:
    """Accept and start an attached job in one step."""
    await store.set_holder(alive=True)
    submitted = await store.jobs.submit(
        new_job(job_id, attached_to=HOLDER), bound=BOUND, start=order(job_id, f"n-{job_id}")
    )
    assert submitted.outcome == "STARTED"


async def _intake(store: Store) -> Intake:
    intake = Intake(store.reader, store.keys, "router-1")
    await intake.ensure()
    return intake


async def _group(store: Store) -> dict[str, Any]:
    (group,) = await store.redis.xinfo_groups(store.keys.requests)
    return {**group}


async def _wakes(store: Store) -> list[tuple[str, str]]:
    entries: Any = await store.redis.xrange(store.keys.wakes)
    return [(entry["type"].removeprefix("job."), entry["job_id"]) for _, entry in entries]


async def test_a_job_that_runs_already_is_no_news_for_the_routers(store: Store) -> None:
    intake = await _intake(store)
    for job_id in ("j1", "j2"):
        await _start(store, job_id)

    group = await _group(store)
    assert (group["lag"], group["pending"]) == (0, 0)
    assert await intake.read(10) == []
    assert await store.redis.xlen(store.keys.requests) == 2


async def test_what_nobody_has_read_yet_is_not_passed_over(store: Store) -> None:
    intake = await _intake(store)
    await store.redis.xadd(store.keys.requests, {"v": "1", "type": "job.request", "prompt": "by hand"})
    await _start(store)

    read = await intake.read(10)
    assert [entry.fields.get("prompt", entry.fields.get("state")) for entry in read] == ["by hand", "running"]


async def test_what_comes_after_it_is_read(store: Store) -> None:
    intake = await _intake(store)
    await _start(store)
    await store.submit("j2")

    assert [entry.fields["job_id"] for entry in await intake.read(10)] == ["j2"]
    assert (await _group(store))["lag"] == 0


async def test_what_a_router_read_and_did_not_ack_stays_pending(store: Store) -> None:
    intake = await _intake(store)
    await store.redis.xadd(store.keys.requests, {"v": "1", "type": "job.request", "prompt": "by hand"})
    assert len(await intake.read(10)) == 1
    await _start(store)

    assert (await _group(store))["pending"] == 1
    assert [entry.fields["prompt"] for entry in await intake.own_pending(10)] == ["by hand"]


async def test_without_a_group_the_first_router_reads_it(store: Store) -> None:
    await _start(store)

    intake = await _intake(store)
    assert [entry.fields["job_id"] for entry in await intake.read(10)] == ["j1"]


async def test_another_group_on_the_stream_reads_everything(store: Store) -> None:
    await _intake(store)
    await store.redis.xgroup_create(store.keys.requests, "audit", id="0")
    await _start(store)

    found: Any = await store.redis.xreadgroup("audit", "me", {store.keys.requests: ">"})
    assert [entry.fields["job_id"] for _, entry in entries_of(found)] == ["j1"]
    names = {group["name"]: group["lag"] for group in await store.redis.xinfo_groups(store.keys.requests)}
    assert names == {ROUTER_GROUP: 0, "audit": 0}


async def test_an_end_wakes_routers_where_somebody_waits(store: Store) -> None:
    await _start(store, "j1")
    await store.finish("j1", 1)
    assert await _wakes(store) == []

    await store.start("j2", "n2")
    await store.submit("j3")
    await store.finish("j2", 1)
    assert await _wakes(store) == [("succeeded", "j2")]


async def test_a_wake_says_what_the_event_says(store: Store) -> None:
    await store.start("j1", "n1")
    await store.submit("j2")
    await store.finish("j1", 1)

    wakes: Any = await store.redis.xrange(store.keys.wakes)
    ((_, wake),) = wakes
    event = (await store.events("j1"))[-1].fields
    assert {name: wake[name] for name in ("type", "router", "waiting")} == {
        name: event[name] for name in ("type", "router", "waiting")
    }


async def test_what_goes_back_to_the_queue_wakes_routers(store: Store) -> None:
    await _start(store, "j1")
    await store.fail("j1", 1)
    await store.start("j2", "n2")
    await store.lapse_lease("j2")
    await store.jobs.sweep(grace_ms=0)

    assert await _wakes(store) == [("retried", "j1"), ("requeued", "j2")]


async def test_a_cancel_of_what_runs_wakes_routers_once(store: Store) -> None:
    await store.start("j1", "n1")
    for _ in range(2):
        await store.jobs.cancel("j1", "asked")

    assert await _wakes(store) == [("cancel_requested", "j1")]


async def test_a_follower_misses_no_wake_between_two_reads(store: Store) -> None:
    follower = Follower(store.reader, {store.keys.wakes: "$"})
    await follower.settle()
    await store.start("j1", "n1")
    await store.jobs.cancel("j1", "asked")

    assert [entry.fields["job_id"] for _, entry in await follower.read()] == ["j1"]
