"""Calls that come while another one is under way go out together, each with its own answer."""

from __future__ import annotations

import asyncio
from typing import Any

from shared.errors import StoreUnavailable
from shared.store.client import connect_commands
from shared.store.records import CancelOutcome
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.store_fixture import BOUND, Store, new_job, open_store
from tests.kit.waiting import wait_until


async def test_every_one_of_many_calls_at_once_gets_its_own_answer(store: Store) -> None:
    jobs = [f"j{number}" for number in range(200)]
    outcomes = await asyncio.gather(*(store.submit(job) for job in jobs))
    assert outcomes == ["ACCEPTED"] * 200
    cancelled = await asyncio.gather(
        *(store.jobs.cancel(job, "enough") for job in jobs[::2]), store.jobs.cancel("never was", "enough")
    )
    assert cancelled[:-1] == [(CancelOutcome.CANCELLED, "cancelled")] * 100
    assert cancelled[-1] == (CancelOutcome.UNKNOWN, "")
    assert [await store.state(job) for job in jobs[:4]] == ["cancelled", "queued", "cancelled", "queued"]


async def test_calls_at_once_need_fewer_writes_than_calls(store: Store) -> None:
    await store.submit("warm")
    before = await _pieces(store)
    await asyncio.gather(*(store.jobs.cancel("warm", "enough") for _ in range(100)))
    assert await _pieces(store) - before < 30


async def test_scripts_that_the_server_has_lost_are_loaded_again_for_all_that_go_out_together(
    store: Store,
) -> None:
    await store.submit("j1")
    await store.redis.script_flush()
    outcomes = await asyncio.gather(*(store.jobs.cancel("j1", "enough") for _ in range(20)))
    assert {outcome for outcome, _ in outcomes} == {CancelOutcome.CANCELLED}


async def test_one_wrong_call_does_not_spoil_those_that_go_out_with_it(store: Store) -> None:
    await store.redis.set(store.keys.ready("broken"), "no queue")
    jobs = [
        store.submit(f"j{number}", target="broken" if number == 5 else "auto:Chat") for number in range(10)
    ]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    wrong = [number for number, answer in enumerate(answers) if isinstance(answer, Exception)]
    assert wrong == [5]
    assert "WRONGTYPE" in str(answers[5])
    await store.redis.delete(store.keys.ready("broken"))


async def test_what_nobody_waits_for_any_more_is_not_sent(store: Store) -> None:
    """Its caller was told that nothing was accepted."""
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as slow:
        await slow.submit("warm")
        proxy.spoil(Fault.STALL, at=len(proxy.commands) + 1)
        first = asyncio.create_task(slow.jobs.cancel("warm", "enough"))
        await wait_until(lambda: proxy.spoiled, "the first call is under way")
        second = asyncio.create_task(slow.submit("second"))
        third = asyncio.create_task(slow.submit("third"))
        await asyncio.sleep(0)
        second.cancel()
        assert (await first)[0] is CancelOutcome.CANCELLED
        assert await third == "ACCEPTED"
    assert await store.state("second") == "absent"


async def test_all_hear_of_a_server_that_is_away(store: Store) -> None:
    async with FaultProxy(store.url) as proxy:
        url = proxy.url
    redis = connect_commands(url, "nowhere", fail_fast=True)
    gone = store.elsewhere("gone")
    lost = type(gone.jobs)(redis, gone.keys)
    calls = [lost.submit(new_job(f"j{number}"), bound=BOUND) for number in range(5)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
    await redis.aclose()


async def _pieces(store: Store) -> int:
    """Reads of the server so far: each takes whatever one write has brought."""
    stats: dict[str, Any] = await store.redis.info("stats")
    return int(stats["total_reads_processed"])


async def test_a_call_that_hangs_holds_the_others_up_for_a_moment_only(store: Store) -> None:
    async with FaultProxy(store.url) as proxy, open_store(proxy.url, fail_fast=True) as slow:
        await slow.submit("warm")
        proxy.spoil(Fault.BLACKHOLE, at=len(proxy.commands) + 1)
        hanging = asyncio.create_task(slow.submit("hanging"))
        await wait_until(lambda: proxy.spoiled, "the first call hangs")
        assert await slow.jobs.cancel("warm", "enough") == (CancelOutcome.CANCELLED, "cancelled")
        assert not hanging.done()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_a_large_call_goes_by_itself(store: Store) -> None:
    body = b'{"prompt":"%s"}' % (b"x" * 100_000)
    await store.submit("warm")
    large = [store.submit(f"large {number}", body=body) for number in range(5)]
    small = [store.submit(f"small {number}") for number in range(5)]
    assert await asyncio.gather(*large, *small) == ["ACCEPTED"] * 10
