"""Keeping the request stream short: nothing unsettled is ever trimmed, deleted or lost with its consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.config import HistorySettings
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.store_fixture import Store, open_store
from tests.kit.store_intake import Router, ask, pending


@pytest.fixture
async def router(store: Store) -> Router:
    found = Router(store, "router-1")
    await found.intake.ensure()
    return found


@pytest.fixture
async def other(router: Router) -> Router:
    return Router(router.store, "router-2")


@pytest.fixture
async def brief(redis_url: str) -> AsyncIterator[Store]:
    """A store that keeps few settled requests."""
    async with open_store(redis_url, history=HistorySettings(requests=100)) as opened:
        yield opened
        await opened.check()


async def test_no_backlog_is_ever_trimmed_before_it_is_settled(brief: Store) -> None:
    """H12: 350 accepted with nobody reading, 100 kept: all are read; only then the oldest go."""
    for number in range(350):
        assert await brief.submit(f"j{number}") == "ACCEPTED"
    assert await brief.jobs.trim_requests() == 0
    router = Router(brief, "router-1")
    await router.intake.ensure()
    assert await brief.jobs.trim_requests() == 0

    first = await router.intake.read(200)
    assert await brief.jobs.trim_requests() == 0, "delivered is not settled"
    await router.settle(first[:50])
    assert await brief.jobs.trim_requests() == 50, "only what lies before the oldest unsettled one"
    await router.settle(first[50:])
    rest = await router.intake.read(200)
    assert [entry.fields["job_id"] for entry in first + rest] == [f"j{number}" for number in range(350)]
    await router.settle(rest)

    trimmed = [await brief.jobs.trim_requests(limit=90) for _ in range(4)]
    assert trimmed == [90, 90, 20, 0]
    left = (await brief.dump()).streams[brief.keys.requests]
    assert [entry.fields["job_id"] for entry in left] == [f"j{number}" for number in range(250, 350)]


async def test_entries_deleted_while_pending_do_no_harm(store: Store, router: Router, other: Router) -> None:
    """H13: somebody ran XDEL or XTRIM; the rest is found, and the gone ones leave the pending list."""
    asked = await ask(store, 4)
    await router.intake.read(10)
    await store.redis.xdel(store.keys.requests, *(job.removeprefix("x-") for job in asked[:2]))
    assert [f"x-{entry.id}" for entry in await router.intake.own_pending(10)] == asked[2:]
    assert await other.settle(await other.intake.reclaim(idle_ms=0, count=10)) == asked[2:]
    assert await pending(store) == []


async def test_a_null_lag_stops_nothing(store: Store, router: Router) -> None:
    """H22: after the XDEL of an unread entry the server can't tell the lag."""
    asked = await ask(store, 3)
    await store.redis.xdel(store.keys.requests, asked[1].removeprefix("x-"))
    (group,) = await store.redis.xinfo_groups(store.keys.requests)
    assert group["lag"] is None
    assert await router.settle(await router.intake.read(10)) == [asked[0], asked[2]]
    assert await store.jobs.trim_requests() == 0


async def test_consumers_long_gone_are_forgotten_but_never_one_with_entries(
    store: Store, router: Router, other: Router
) -> None:
    """H14: deleting a consumer drops what it holds."""
    third = Router(store, "router-3")
    await ask(store, 1)
    assert len(await other.intake.read(10)) == 1
    await third.intake.own_pending(1)
    assert await router.intake.forget_idle_consumers(idle_ms=60_000) == [], "none is idle for that long"
    await store.redis.ping()
    assert await router.intake.forget_idle_consumers(idle_ms=-1) == ["router-3"]
    assert len(await pending(store)) == 1


async def test_a_consumer_that_wakes_up_while_it_is_being_forgotten_keeps_its_entry(
    store: Store, other: Router
) -> None:
    """H14: between the look and the deletion it may have read something."""
    await other.intake.own_pending(1)
    asked = await ask(store, 1)
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as behind:
        janitor = Router(behind, "router-1")
        await janitor.intake.ensure()
        proxy.spoil(Fault.HOLD, name="XGROUP")
        forgetting = asyncio.create_task(janitor.intake.forget_idle_consumers(idle_ms=-1))
        waiting = asyncio.create_task(proxy.held.wait())
        await asyncio.wait({forgetting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        batch = await other.intake.read(10)
        proxy.release()
        await forgetting
    assert await pending(store) == [entry.id for entry in batch]
    assert await other.settle(batch) == asked
