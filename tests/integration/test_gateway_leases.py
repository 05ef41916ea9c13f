"""The one keeper of an api's leases: late grants come first, cancelled ones end, lost ones are let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from services.api.gateway.leases import Leases
from services.api.gateway.lines import Attempt, Line
from services.api.gateway.outcomes import Cut
from shared.states import BackendType
from shared.store.grants import Grant
from tests.kit.api_fixture import end
from tests.kit.store_fixture import MODEL, Store
from tests.kit.waiting import wait_until


@pytest.fixture
async def leases(store: Store) -> AsyncIterator[Leases]:
    kept = Leases(store.jobs, 600)
    running = asyncio.create_task(kept.run())
    yield kept
    await end(running)


def _attempt(job_id: str, number: int, *, unread_s: float) -> Attempt:
    grant = Grant(
        job_id,
        number,
        0,
        MODEL,
        BackendType.LLAMA_CPP,
        "http://127.0.0.1:1",
        MODEL,
        None,
        "",
        "",
        "",
        None,
        0,
    )
    now = time.monotonic()
    return Attempt(grant, now, now - unread_s)


async def _claimed(store: Store, job_id: str) -> int:
    await store.attach(job_id)
    return (await store.claim(job_id, f"n-{job_id}")).attempt


async def _expiry(store: Store, job_id: str) -> float:
    return float(await store.redis.zscore(store.keys.static("leases"), job_id) or 0)


async def test_a_fresh_grant_is_accepted_in_a_moment_for_the_whole_lease(
    store: Store, leases: Leases
) -> None:
    line = Line("j1", lambda _: None)
    attempt = _attempt("j1", await _claimed(store, "j1"), unread_s=1.0)
    before = await _expiry(store, "j1")
    leases.keep(line, attempt)
    await attempt.wait_accepted()

    assert (attempt.in_doubt, attempt.lost) == (False, False)
    assert await _expiry(store, "j1") > before + 300_000


async def test_a_grant_that_came_too_late_is_known_to_be_lost_once_it_was_to_be_accepted(
    store: Store, leases: Leases
) -> None:
    line = Line("j1", lambda _: None)
    attempt = _attempt("j1", await _claimed(store, "j1"), unread_s=1.6)
    await store.lapse_lease("j1")
    await store.jobs.sweep(grace_ms=0)
    leases.keep(line, attempt)
    await attempt.wait_accepted()

    assert (attempt.in_doubt, attempt.lost) == (True, True)
    assert leases.kept == 0


async def test_what_was_dropped_is_renewed_no_more(store: Store, leases: Leases) -> None:
    line = Line("j1", lambda _: None)
    first = _attempt("j1", await _claimed(store, "j1"), unread_s=0)
    second = _attempt("j2", await _claimed(store, "j2"), unread_s=0)
    before = await _expiry(store, "j1")
    leases.keep(line, first)
    leases.keep(Line("j2", lambda _: None), second)
    leases.drop(first)
    await second.wait_accepted()

    assert await _expiry(store, "j1") == before
    assert leases.kept == 1


async def test_a_renewal_that_learns_of_a_cancellation_cuts_the_request(store: Store, leases: Leases) -> None:
    cuts: list[Cut] = []
    attempt = _attempt("j1", await _claimed(store, "j1"), unread_s=0)
    await store.jobs.cancel("j1", "an operator said so")
    leases.keep(Line("j1", cuts.append), attempt)

    await wait_until(lambda: cuts == [Cut.CANCELLED], "the request is cut")
