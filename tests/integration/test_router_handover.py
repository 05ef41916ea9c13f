"""Jobs that an api started for the routers: one runs each, whatever happens between the two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from services.api.gateway.fastpath import FastPath
from services.router.follower import Following, positions
from services.router.intake import IntakeLoop
from services.router.wakeup import Wakeup
from shared.config import Settings, parse
from shared.keys import ROUTER_GROUP
from shared.outcomes import RELEASED
from shared.registry import Registration
from shared.states import JobState
from shared.store.records import (
    ClaimOrder,
    FailOutcome,
    FinishOutcome,
    RenewOutcome,
    StreamEntry,
    SubmitOutcome,
)
from shared.store.streams import Follower, Intake
from tests.integration.test_gateway_relay import WORDS, chunk
from tests.kit.api_fixture import end
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.faulty_server import SSE_HEAD, faulty_server
from tests.kit.router_parts import ROUTER, RouterParts, router_parts
from tests.kit.store_fixture import BOUND, MODEL, Store, new_job, open_store, order
from tests.kit.waiting import wait_until

API = "api-1"


async def _routers(store: Store, *, swept_ago_ms: int = 0) -> None:
    """Let a router have swept this long ago."""
    swept = await store.now_ms() + 600_000 if swept_ago_ms == 0 else await store.now_ms() - swept_ago_ms
    await store.redis.hset(store.keys.static("swept"), "last_ms", str(swept))


def _start(url: str = "http://127.0.0.1:1", job_id: str = "j1", **changes: Any) -> ClaimOrder:
    """A decision of an api, with all that a router needs to carry it out."""
    told = {
        "tries": "0",
        "model": MODEL,
        "backend": "llama_cpp",
        "url": url,
        "upstream_name": MODEL,
        "gpu": "",
        "code": "best",
        "reason": "it fits",
    }
    grant = tuple(word for pair in told.items() for word in pair)
    return replace(order(job_id, f"n-{job_id}", router=API, lease_ms=3000), grant=grant, **changes)


async def _hand_over(
    store: Store, url: str = "http://127.0.0.1:1", job_id: str = "j1", **changes: Any
) -> str:
    await _routers(store)
    job = new_job(job_id, fields={"model": MODEL, "agent_type": "", "request_id": "r1"}, **changes)
    return (await store.jobs.submit(job, bound=BOUND, start=_start(url, job_id))).outcome.value


async def _entry(store: Store, consumer: str = ROUTER) -> StreamEntry:
    intake = Intake(store.reader, store.keys, consumer)
    await intake.ensure()
    (entry,) = await intake.read(10)
    return entry


@asynccontextmanager
async def _router(
    store: Store, settings: Mapping[str, Any] | None = None, *, name: str = ROUTER
) -> AsyncIterator[RouterParts]:
    """A router's reading and running parts at work."""
    parts = router_parts(store, parse(settings or {}, "test"), name)
    loop = IntakeLoop(
        Intake(store.reader, store.keys, name),
        store.jobs,
        store.fleet,
        Settings(),
        lambda _: None,
        parts.handover,
    )
    running = [asyncio.create_task(run) for run in (parts.dispatcher.run(), loop.run())]
    try:
        yield parts
    finally:
        for task in reversed(running):
            await end(task)


async def _ended(store: Store, job_id: str = "j1") -> Mapping[str, str]:
    async def over() -> Mapping[str, str] | None:
        fields = (await store.job(job_id)).fields
        return fields if fields["state"] not in ("queued", "running") else None

    found = await wait_until(over, f"{job_id} has ended")
    assert found is not None
    return found


async def test_the_router_that_reads_of_it_runs_it(store: Store) -> None:
    async with faulty_server(SSE_HEAD, *WORDS) as backend, _router(store):
        assert await _hand_over(store, backend.url) == SubmitOutcome.STARTED
        job = await _ended(store)

    assert (job["state"], job["attempt"], job["tries"], job["router"]) == ("succeeded", "1", "0", ROUTER)
    assert [request.json["prompt"] for request in backend.requests] == ["hi"]
    assert backend.requests[0].headers["x-request-id"] == "r1"
    assert await store.kinds() == ["queued", "started", "succeeded"]
    decisions: Any = await store.redis.xrange(store.keys.decisions)
    assert [(one["job_id"], one["attempt"]) for _, one in decisions] == [("j1", "1")]
    assert (await store.model())["in_flight"] == "0"
    await store.check()


async def test_an_api_hands_over_what_it_decides_on(store: Store) -> None:
    async with faulty_server(SSE_HEAD, *WORDS) as backend, _router(store):
        await _routers(store)
        await store.fleet.register([Registration(name=MODEL, url=backend.url, vram_gb=2.0, slots=4)])
        fast = FastPath(store.jobs, store.fleet, Settings(), lambda: API)
        job = new_job(fields={"model": MODEL, "agent_type": ""}, target=MODEL)
        submitted, start = await fast.submit(job, bound=BOUND)
        ended = await _ended(store)

    assert submitted.outcome is SubmitOutcome.STARTED
    assert start is not None
    assert ended["state"] == JobState.SUCCEEDED
    decisions: Any = await store.redis.xrange(store.keys.decisions)
    assert [(one["router"], one["model"]) for _, one in decisions] == [(API, MODEL)]


async def test_what_it_handed_over_counts_in_its_next_decision(store: Store) -> None:
    await _routers(store)
    names = (MODEL, "beta")
    await store.fleet.register(
        [
            Registration(name=name, port=port, vram_gb=2.0, slots=4, agent_types=("Chat",))
            for port, name in enumerate(names, 1001)
        ]
    )
    fast = FastPath(store.jobs, store.fleet, Settings(), lambda: API)
    starts = [(await fast.submit(new_job(f"j{number}"), bound=BOUND))[1] for number in range(4)]

    assert sorted(start.model.name for start in starts if start is not None) == [MODEL, MODEL, "beta", "beta"]


async def test_without_a_router_it_waits(store: Store) -> None:
    await _routers(store, swept_ago_ms=60_000)
    submitted = await store.jobs.submit(new_job(), bound=BOUND, start=_start())

    assert submitted.outcome is SubmitOutcome.ACCEPTED
    assert (await store.state("j1"), await store.kinds()) == ("queued", ["queued"])


async def test_a_body_that_its_entry_does_not_hold_is_fetched(store: Store) -> None:
    body = b'{"prompt":"%s"}' % (b"x" * 50_000)
    async with faulty_server(SSE_HEAD, *WORDS) as backend, _router(store):
        await _hand_over(store, backend.url, body=body)
        await _ended(store)

    assert backend.requests[0].json["prompt"] == "x" * 50_000
    entries: Any = await store.redis.xrange(store.keys.requests)
    assert [("body" in entry, len(entry) < 40) for _, entry in entries] == [(False, True)]


async def test_what_a_dead_router_read_is_run_by_another(store: Store) -> None:
    async with faulty_server(SSE_HEAD, *WORDS) as backend:
        await _hand_over(store, backend.url)
        await _entry(store, "router-0")
        (entry,) = await Intake(store.reader, store.keys, ROUTER).reclaim(idle_ms=0, count=10)
        parts = router_parts(store)
        parts.handover.take(entry, in_doubt=True)
        job = await _ended(store)

    assert (job["state"], job["router"], job["attempt"]) == ("succeeded", ROUTER, "1")
    assert len(backend.requests) == 1


async def test_what_another_has_taken_is_not_run_again(store: Store) -> None:
    async with faulty_server(SSE_HEAD, *WORDS) as backend:
        await _hand_over(store, backend.url)
        entry = await _entry(store)
        assert await store.jobs.take("j1", 1, "router-9", 30_000) is not None
        parts = router_parts(store)
        parts.handover.take(entry, in_doubt=True)
        await parts.handover.settled()

    assert (backend.requests, parts.dispatcher.running) == ([], 0)
    assert (await store.job()).fields["router"] == "router-9"


async def test_an_entry_read_twice_runs_once(store: Store) -> None:
    async with faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend:
        await _hand_over(store, backend.url)
        entry = await _entry(store)
        parts = router_parts(store)
        parts.handover.take(entry, in_doubt=False)
        await wait_until(lambda: backend.requests, "it runs")
        parts.handover.take(entry, in_doubt=True)
        parts.handover.take(entry, in_doubt=False)
        await parts.handover.settled()
        await parts.dispatcher.drain(0)

    assert len(backend.requests) == 1


async def test_a_full_router_gives_it_back_uncharged(store: Store) -> None:
    async def back() -> bool:
        return await store.state("j2") == JobState.QUEUED

    async with (
        faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend,
        _router(store, {"router": {"max_in_flight": 1}}) as parts,
    ):
        await _hand_over(store, backend.url, "j1")
        await wait_until(lambda: backend.requests, "one runs")
        await _hand_over(store, backend.url, "j2")
        await wait_until(back, "the other is given back")
        await parts.dispatcher.drain(0)

    job = (await store.job("j2")).fields
    assert (job["attempt"], job["tries"]) == ("1", "0")
    assert await store.kinds("j2") == ["queued", "started", "requeued"]
    assert len(backend.requests) == 1


async def test_what_this_router_gave_back_wakes_its_own_scheduler(store: Store) -> None:
    wake, parts = Wakeup(), router_parts(store, parse({"router": {"max_in_flight": 1}}, "test"))
    follower = Follower(store.reader, positions(store.keys))
    await follower.settle()
    following = Following(follower, store.keys, parts.dispatcher, wake=wake, due=Wakeup(), router=ROUTER)
    running = asyncio.create_task(following.run())
    await _hand_over(store)
    parts.handover.stop()
    parts.handover.take(await _entry(store), in_doubt=False)

    async with asyncio.timeout(20):
        await wake.wait(60)
    await end(running)
    assert await store.state("j1") == JobState.QUEUED


async def test_no_more_run_than_may_also_where_bodies_are_fetched(store: Store) -> None:
    body = b'{"prompt":"%s"}' % (b"x" * 5000)
    async with (
        faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend,
        _router(store, {"router": {"max_in_flight": 1}}) as parts,
    ):
        for number in range(4):
            await _hand_over(store, backend.url, f"j{number}", body=body)

        async def settled() -> bool:
            states = [await store.state(f"j{number}") for number in range(4)]
            return sorted(states) == ["queued", "queued", "queued", "running"]

        await wait_until(settled, "one runs, the others are given back")
        assert parts.dispatcher.running == 1
        await parts.dispatcher.drain(0)

    assert len(backend.requests) == 1


@pytest.mark.parametrize("how", ["destroyed", "set back"])
async def test_what_was_read_long_ago_is_not_run_again(store: Store, how: str) -> None:
    async with faulty_server(SSE_HEAD, *WORDS) as backend, _router(store):
        for number in range(3):
            await _hand_over(store, backend.url, f"j{number}")
            await _ended(store, f"j{number}")
        if how == "destroyed":
            await store.redis.xgroup_destroy(store.keys.requests, ROUTER_GROUP)
        else:
            await store.redis.xgroup_setid(store.keys.requests, ROUTER_GROUP, "0")
        await _hand_over(store, backend.url, "last")
        await _ended(store, "last")

        async def all_acked() -> bool:
            (group,) = await store.redis.xinfo_groups(store.keys.requests)
            return (group["lag"], group["pending"]) == (0, 0)

        await wait_until(all_acked, "all is read again")

    assert len(backend.requests) == 4


async def test_what_came_as_the_router_stopped_is_handed_back_at_once(store: Store) -> None:
    """The server handed it out, and the reply is lost: nobody else would be told for ten seconds."""
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as apart, _router(apart):
        await _reads(proxy, 2)  # what it left pending, and the first that waits
        proxy.spoil(Fault.DROP_REPLY, name="XREADGROUP", times=1)
        await _reads(proxy, 3)
        await _hand_over(store)
        await _delivered(store)

    assert (await store.job()).fields["tries"] == "0"
    assert await store.kinds() == ["queued", "started", "requeued"]
    assert (await store.redis.xpending(store.keys.requests, "router"))["pending"] == 0


async def _reads(proxy: FaultProxy, count: int) -> None:
    await wait_until(lambda: proxy.commands.count("XREADGROUP") >= count, f"it has read {count} times")


async def _delivered(store: Store) -> None:
    async def handed_out() -> bool:
        groups = await store.redis.xinfo_groups(store.keys.requests)
        return any(group["pending"] for group in groups)

    await wait_until(handed_out, "the entry was handed out")


async def test_a_backend_that_fails_is_charged_as_ever(store: Store) -> None:
    async with faulty_server(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n") as backend, _router(store):
        await _hand_over(store, backend.url)

        async def tried() -> bool:
            return (await store.job()).fields["tries"] == "1"

        await wait_until(tried, "it was tried")
    assert (await store.job()).fields["state"] == JobState.QUEUED


async def test_a_cancel_that_nobody_could_hear_yet_is_heard_when_it_is_accepted(store: Store) -> None:
    async with faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend:
        await _hand_over(store, backend.url)
        await store.jobs.cancel("j1", "no longer needed")
        async with _router(store):
            job = await _ended(store)
        await asyncio.wait_for(backend.left.wait(), 10)

    assert job["state"] == JobState.CANCELLED


async def test_a_long_one_is_accepted_for_a_whole_lease(store: Store) -> None:
    async with faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend:
        await _hand_over(store, backend.url)
        async with _router(store) as parts:

            async def accepted() -> bool:
                return (await store.job()).fields["router"] == ROUTER

            await wait_until(accepted, "it is accepted")
            left_ms = float(await store.redis.zscore(store.keys.static("leases"), "j1") or 0)
            assert left_ms - await store.now_ms() > 10_000
            await parts.dispatcher.drain(0)


async def test_a_router_that_redis_cannot_hear_stops_before_another_may_run_it(store: Store) -> None:
    """Nobody else runs it until its first lease and the grace are over: 6 s here; it stops at 4.5."""
    settings = parse({"router": {"lease_s": 6}}, "test")
    async with (
        faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend,
        FaultProxy(store.url) as proxy,
        open_store(proxy.url, fail_fast=True) as cut_off,
    ):
        await _hand_over(store, backend.url)
        parts = router_parts(cut_off, settings, ROUTER)
        keeping = asyncio.create_task(parts.dispatcher.run())
        try:
            entry = await _entry(store)
            proxy.spoil(Fault.BLACKHOLE, name="EVALSHA", times=1_000)
            parts.handover.take(entry, in_doubt=False)
            await asyncio.wait_for(backend.left.wait(), 30)
            assert await store.jobs.sweep(grace_ms=3_000) == []
        finally:
            await end(keeping)
    fields = (await store.job()).fields
    assert (fields["state"], fields["router"]) == ("running", "")
    assert (await store.jobs.sweep(grace_ms=-10_000)) == ["j1"]
    await store.finish("j1", (await store.claim("j1", "n2")).attempt)


async def test_with_the_shortest_lease_what_runs_stays_its_routers(store: Store) -> None:
    shortest_s = 1.0
    async with faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend:
        await _hand_over(store, backend.url)
        async with _router(store, {"router": {"lease_s": shortest_s}}) as parts:
            leases = set[float]()

            async def renewed_often() -> bool:
                leases.add(await store.redis.zscore(store.keys.static("leases"), "j1") or 0.0)
                assert await store.jobs.sweep(grace_ms=500) == []
                return len(leases) > 8  # over two leases long

            await wait_until(renewed_often, "its lease is renewed again and again")
            assert (await store.job()).fields["attempt"] == "1"
            await parts.dispatcher.drain(0)


@pytest.mark.parametrize("torn", ["url", "deadline_ms", "backend"])
async def test_an_entry_that_says_too_little_leaves_its_job_to_the_sweep(store: Store, torn: str) -> None:
    await _hand_over(store)
    entry = await _entry(store)
    fields = {name: value for name, value in entry.fields.items() if name != torn}
    parts = router_parts(store)
    parts.handover.take(StreamEntry(entry.id, fields), in_doubt=False)

    assert parts.dispatcher.running == 0
    await store.lapse_lease()
    assert await store.jobs.sweep(grace_ms=0) == ["j1"]
    job = (await store.job()).fields
    assert (job["state"], job["error_detail"]) == ("queued", "no router took it in time")


async def test_an_attempt_is_that_router_s_who_says_so_first(store: Store) -> None:
    await _hand_over(store)
    assert await store.jobs.renew("j1", 1, 30_000, "router-a") is RenewOutcome.RENEWED

    assert await store.jobs.renew("j1", 1, 30_000, "router-b") is RenewOutcome.STALE
    assert await store.jobs.take("j1", 1, "router-b", 30_000) is None
    assert await store.jobs.fail("j1", 1, RELEASED, "router-b") is FailOutcome.STALE
    late = await store.jobs.finish("j1", 1, result="{}", fields={}, learned={}, router="router-b")
    assert late.outcome is FinishOutcome.STALE
    ended = await store.jobs.finish("j1", 1, result="{}", fields={}, learned={}, router="router-a")
    assert ended.outcome is FinishOutcome.FINISHED
    assert (await store.job()).fields["router"] == "router-a"


async def test_its_end_says_who_ran_it(store: Store) -> None:
    await _hand_over(store)
    await store.jobs.finish("j1", 1, result="{}", fields={}, learned={}, router="router-a")

    (started, ended) = (await store.events())[1:]
    assert (started.fields["router"], ended.fields["router"]) == (API, "router-a")


async def test_a_replay_hands_it_over_once(store: Store) -> None:
    await _routers(store)
    job, start = new_job(), _start()
    outcomes = [(await store.jobs.submit(job, bound=BOUND, start=start)).outcome for _ in range(3)]

    assert outcomes == [SubmitOutcome.STARTED] * 3
    assert await store.redis.xlen(store.keys.requests) == 1
