"""The request stream: every entry reaches a router that settles it, once, whatever happens to its readers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from shared.errors import StoreUnavailable
from shared.keys import ROUTER_GROUP
from shared.snapshots import request_of
from shared.store.records import Head
from shared.store.streams import Intake, read_range
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.router_parts import intake_loop
from tests.kit.stopwatch import Stopwatch
from tests.kit.store_fixture import BOUND, HOLDER, Store, new_job, open_store, order
from tests.kit.store_intake import Router, ask, pending
from tests.kit.waiting import wait_until


@pytest.fixture
async def router(store: Store) -> Router:
    found = Router(store, "router-1")
    await found.intake.ensure()
    return found


@pytest.fixture
async def other(router: Router) -> Router:
    return Router(router.store, "router-2")


async def _set_idle(store: Store, consumer: str, job_id: str, idle_ms: int) -> None:
    await store.redis.xclaim(
        store.keys.requests, ROUTER_GROUP, consumer, 0, [job_id.removeprefix("x-")], idle=idle_ms, justid=True
    )


async def test_what_was_asked_before_the_first_router_started_is_not_missed(store: Store) -> None:
    """H6: the group begins at the start of the stream."""
    asked = await ask(store, 3)
    router = Router(store, "router-1")
    await router.intake.ensure()
    assert await router.settle(await router.intake.read(10)) == asked


async def test_making_the_group_again_loses_no_place(store: Store, router: Router) -> None:
    asked = await ask(store, 2)
    assert await router.settle(await router.intake.read(1)) == asked[:1]
    await router.intake.ensure()
    assert await router.settle(await router.intake.read(10)) == asked[1:]


async def test_an_idle_stream_is_no_error(router: Router) -> None:
    """H4: a blocking read that finds nothing comes back empty, before the socket's time-out."""
    assert await router.intake.read(10) == []


async def test_entries_of_a_lost_read_reply_are_found_among_the_pending_ones(store: Store) -> None:
    """H3: the client sees an error, not the next entries; what was delivered waits for it."""
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as behind:
        router = Router(behind, "router-1")
        await router.intake.ensure()
        asked = await ask(store, 4)
        proxy.spoil(Fault.DROP_REPLY, name="XREADGROUP")
        with pytest.raises(StoreUnavailable):
            await router.intake.read(2)
        found = await router.settle(await router.intake.own_pending(10))
        found += await router.settle(await router.intake.read(10))
        assert found == asked
        assert proxy.commands.count("XREADGROUP") == 3, "the client must not resend a read by itself"
    assert await pending(store) == []


@pytest.mark.slow
async def test_a_reader_whose_connection_swallows_everything_recovers_within_ten_seconds(
    store: Store,
) -> None:
    """H4: a half-open connection neither answers nor closes; only the socket's time-out ends it."""
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as behind:
        router = Router(behind, "router-1")
        await router.intake.ensure()
        asked = await ask(store, 1)
        proxy.spoil(Fault.BLACKHOLE, name="XREADGROUP")
        with Stopwatch() as watch:
            with pytest.raises(StoreUnavailable):
                await router.intake.read(10)
            assert await router.settle(await router.intake.read(10)) == asked
            assert watch.elapsed_s < 10.0


async def test_own_pending_entries_are_read_page_by_page(store: Store, router: Router) -> None:
    asked = await ask(store, 5)
    await router.intake.read(10)
    first = await router.intake.own_pending(3)
    second = await router.intake.own_pending(3, first[-1].id)
    assert [f"x-{entry.id}" for entry in first + second] == asked
    assert await router.settle(first + second) == asked
    assert await router.intake.own_pending(3) == []


async def test_entries_of_a_dead_router_are_found_behind_fresh_ones(
    store: Store, router: Router, other: Router
) -> None:
    """H7: XAUTOCLAIM looks at ten times COUNT entries and has to go on from there."""
    asked = await ask(store, 41)
    await other.intake.read(100)
    await _set_idle(store, "router-2", asked[-1], 60_000)
    calls = [await router.intake.reclaim(idle_ms=30_000, count=1) for _ in range(6)]
    assert [f"x-{entry.id}" for call in calls for entry in call] == [asked[-1]]


async def test_a_router_finds_its_own_lost_entries_again(store: Store, router: Router) -> None:
    """H3: a read that arrived late filled the pending list after it was looked through."""
    asked = await ask(store, 1)
    await router.intake.read(10)
    await _set_idle(store, "router-1", asked[0], 60_000)
    assert await router.settle(await router.intake.reclaim(idle_ms=30_000, count=10)) == asked


async def test_the_rest_of_a_slow_batch_is_not_taken_away(
    store: Store, router: Router, other: Router
) -> None:
    """H8: entries count as idle from the delivery of the whole batch; ten seconds of it are plenty."""
    asked = await ask(store, 10)
    batch = await router.intake.read(10)
    await router.settle(batch[:3])
    assert await other.intake.reclaim(idle_ms=10_000, count=100) == []
    assert await router.settle(batch[3:]) == asked[3:]


async def test_an_entry_in_two_hands_becomes_one_job(store: Store, router: Router, other: Router) -> None:
    """H8, H9, H10: its first reader was stopped, a second one took it over, then the first one woke up."""
    asked = await ask(store, 3)
    batch = await router.intake.read(10)
    stolen = await other.intake.reclaim(idle_ms=0, count=10)
    assert await other.settle(stolen) == asked
    await store.claim(asked[0])
    assert await router.settle(batch) == asked
    assert [await store.kinds(job_id) for job_id in asked] == [["queued", "started"], ["queued"], ["queued"]]


async def test_a_poisoned_entry_goes_to_the_dead_letters_and_the_others_go_on(
    store: Store, router: Router
) -> None:
    """H11."""
    asked = await ask(store, 5)
    await store.request(v="1", type="nonsense", text="x" * 5000)
    asked += await ask(store, 5)
    settled = await router.settle(await router.intake.read(100))
    assert settled == [*asked[:5], "DEAD", *asked[5:]]
    (letter,) = (await store.dump()).streams[store.keys.dead]
    assert (letter.fields["type"], letter.fields["reason"]) == ("request.dead", "no prompt")
    assert '"type": "nonsense"' in letter.fields["raw"]
    assert "(5000 characters)" in letter.fields["raw"]
    assert len(letter.fields["raw"]) < 2500
    assert await pending(store) == []


async def test_bytes_that_are_no_text_reach_the_dead_letters(store: Store, router: Router) -> None:
    """H11: they must not kill the reader."""
    await store.redis.xadd(store.keys.requests, {"v": "1", b"\xff": b"\xfe"})
    assert await router.settle(await router.intake.read(10)) == ["DEAD"]
    (letter,) = (await store.dump()).streams[store.keys.dead]
    assert "xfe" in letter.fields["raw"]


async def test_a_job_id_of_somebody_else_goes_to_the_dead_letters(store: Store, router: Router) -> None:
    await store.request(v="1", job_id="invented", prompt="hi")
    (reason,) = await router.settle(await router.intake.read(10))
    assert "leave job_id out" in reason
    assert await store.redis.xlen(store.keys.dead) == 1


async def test_two_routers_share_the_entries_between_them(
    store: Store, router: Router, other: Router
) -> None:
    asked = await ask(store, 40)

    async def work(one: Router) -> list[str]:
        settled: list[str] = []
        while entries := await one.intake.read(3):
            settled += await one.settle(entries)
        return settled

    shares = await asyncio.gather(work(router), work(other))
    assert sorted(shares[0] + shares[1]) == sorted(asked)


async def test_a_reader_cancelled_in_the_middle_again_and_again_finds_every_entry(
    store: Store, router: Router
) -> None:
    """H18."""
    asked: list[str] = []
    settled: list[str] = []
    for round_number in range(150):
        reading = asyncio.create_task(router.intake.read(5))
        for _ in range(round_number % 7):
            await asyncio.sleep(0)
        asked += await ask(store, 1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        settled += await router.settle(await router.intake.own_pending(50))
    settled += await router.settle(await router.intake.read(500))
    assert sorted(settled) == sorted(asked)


async def test_every_reply_shape_is_understood_by_both_parsers(store: Store) -> None:
    """H20: hiredis and redis-py's own parser give the same entries for every kind of read."""
    from redis._parsers import _AsyncRESP3Parser

    asked = await ask(store, 2)
    shapes: list[Any] = []
    for name, parser in (("fast", None), ("plain", _AsyncRESP3Parser)):
        async with open_store(store.url) as own:
            if parser is not None:
                own.reader.connection_pool.connection_kwargs["parser_class"] = parser
            intake = Intake(own.reader, own.keys, name)
            await intake.ensure()
            await store.redis.xgroup_setid(store.keys.requests, ROUTER_GROUP, "0")
            read = await intake.read(10)
            shapes.append((read, await intake.own_pending(10), await intake.reclaim(idle_ms=0, count=10)))
            assert [f"x-{entry.id}" for entry in read] == asked
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("claimed", ["unknown", "j1:request", "j1:result"])
async def test_an_entry_with_a_job_id_that_is_no_job_is_a_dead_letter_with_its_text(
    store: Store, claimed: str
) -> None:
    """``<id>:request`` names a key that exists, but no job."""
    await store.start()
    await store.finish()
    intake = Intake(store.reader, store.keys, "router-1")
    loop = asyncio.create_task(intake_loop(store, intake, lambda _: None).run(), name="intake")
    entry = await store.request(v="1", job_id=claimed, prompt="do not lose me")
    (letter,) = await wait_until(lambda: read_range(store.redis, store.keys.dead), "the dead letter")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert letter.fields["entry"] == entry
    assert json.loads(letter.fields["raw"]) == {"v": "1", "job_id": claimed, "prompt": "do not lose me"}
    assert await pending(store) == []


async def test_what_was_accepted_is_offered_with_all_that_a_decision_needs(store: Store) -> None:
    """What an api started itself, or what says too little, is not."""
    offered: list[Head] = []
    intake = Intake(store.reader, store.keys, "router-1")
    loop = asyncio.create_task(intake_loop(store, intake, offered.extend).run(), name="intake")
    await store.attach("j1", fields={"model": "", "priority": "7", "prompt_tokens": "11", "fallback": "1"})
    await store.jobs.cancel("j1", "enough")
    started = new_job("j2", attached_to=HOLDER)
    assert (await store.jobs.submit(started, bound=BOUND, start=order("j2"))).outcome == "STARTED"
    await store.request(v="1", type="job.request", job_id="j1", target="auto:Chat", ts_ms="1")
    await store.submit("j3")
    await wait_until(lambda: len(offered) == 2, "two are offered")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)

    job = await store.job("j1")
    assert [head.job_id for head in offered] == ["j1", "j3"]
    asked = request_of(offered[0], 0)
    assert asked == request_of(Head("j1", job.fields), 0)
    assert (asked.agent_type, asked.priority, asked.prompt_tokens) == ("Chat", 7, 11)
    assert offered[0].fields["attached_to"] == HOLDER
    assert offered[0].fields["submitted_ms"] == job.fields["submitted_ms"]


async def test_what_others_write_about_a_job_is_not_decided_on(store: Store) -> None:
    """An entry with an accepted job's id wakes the routers, which look at the job itself."""
    offers: list[Sequence[Head]] = []
    intake = Intake(store.reader, store.keys, "router-1")
    loop = asyncio.create_task(intake_loop(store, intake, offers.append).run(), name="intake")
    await store.submit("j1")
    await wait_until(lambda: sum(map(len, offers)) == 1, "the job itself is offered")
    await store.request(v="1", type="job.request", job_id="j1", priority="5", model="beta")
    await wait_until(lambda: len(offers) >= 2, "the routers are woken")
    await store.request(v="1", type="job.request", job_id="j1:request", queued_event="1-1")
    await wait_until(lambda: len(offers) >= 3, "and again")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert sum(map(len, offers)) == 1
