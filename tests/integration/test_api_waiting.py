"""Waiting for a job's end: woken by its event, found by looking, given up, left by the client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from services.api.waiting import wait_for_end
from shared.errors import StoreUnavailable
from shared.states import JobState
from shared.store.records import JobRecord
from tests.kit.api_fixture import ApiClient, api_config, end, hear, serving, state_on
from tests.kit.stopwatch import Stopwatch
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until


async def test_wait_answers_with_the_result_as_soon_as_there_is_one(api: ApiClient, api_store: Store) -> None:
    waiting = asyncio.create_task(api.post({"prompt": "hi"}, query="?wait=15"))
    await _run_the_only_job(api_store)

    answer = await waiting

    assert (answer.status, answer.body["state"], answer.body["result"]["text"]) == (200, "succeeded", "hi")
    assert answer.headers["location"] == f"/v1/jobs/{answer.body['job_id']}"
    assert answer.headers["x-orchestrator-model"] == "alpha"
    assert float(answer.headers["x-orchestrator-overhead-ms"]) < 5000


async def test_wait_ends_with_the_job_as_it_is_when_the_time_is_up(api: ApiClient, api_store: Store) -> None:
    with Stopwatch() as asked:
        answer = await api.post({"prompt": "hi"}, query="?wait=0.3")
        counted_s, passed_s = asked.elapsed_s, asked.elapsed_s + asked.away_s

    assert (answer.status, answer.body["state"]) == (202, "queued")
    assert passed_s >= 0.3
    assert counted_s < 3
    assert await api_store.state(answer.body["job_id"]) == "queued"


async def test_reading_a_job_can_wait_for_its_end(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    waiting = asyncio.create_task(api.get(f"/v1/jobs/{job_id}?wait=15"))
    await _run_the_only_job(api_store)

    answer = await waiting

    assert (answer.status, answer.body["state"]) == (200, "succeeded")


@pytest.mark.parametrize("wait", ["-1", "20.1", "nan", "inf", "long", ""])
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_wrong_wait_is_refused_before_anything_happens(
    api: ApiClient, api_store: Store, method: str, wait: str
) -> None:
    path = "/v1/jobs" if method == "POST" else "/v1/jobs/" + "0" * 32
    answer = await api.call(
        method, f"{path}?wait={wait}", data=b'{"prompt": "hi"}' if method == "POST" else None
    )

    assert answer.problem(422)["field"] == "wait"
    assert await api_store.jobs.counts() == (0, 0)


async def test_a_client_that_leaves_while_it_waits_frees_its_place_and_cancels_nothing(
    store: Store, tmp_path: Path
) -> None:
    state = state_on(store, api_config(store.url, tmp_path))
    async with serving(state) as url, aiohttp.ClientSession() as session:
        request = asyncio.create_task(session.post(f"{url}/v1/jobs?wait=15", json={"prompt": "hi"}))
        await wait_until(lambda: state.feed.subscribers == 1, "the request waits")
        request.cancel()
        await wait_until(lambda: state.feed.subscribers == 0, "its place is free")

    assert await store.jobs.counts() == (1, 0)
    assert await store.kinds((await store.events())[0].fields["job_id"]) == ["queued"]


async def test_an_event_wakes_the_waiter_before_it_would_look_for_itself(
    store: Store, tmp_path: Path
) -> None:
    state = state_on(store, api_config(store.url, tmp_path))
    feed = asyncio.create_task(state.feed.run())
    with state.feed.subscribe("j1") as events:
        await state.feed.follows()
        await store.start()
        await hear(events, "job.started")
        await store.finish()
        await hear(events, "job.succeeded")

    await end(feed)


async def test_a_waiter_outlasts_an_absent_redis(store: Store, tmp_path: Path) -> None:
    """An error would make its client send the accepted job again."""
    state = state_on(store, api_config(store.url, tmp_path))
    await store.start()
    record = await store.job()
    await store.finish()
    looks = 0

    async def away_at_first(job_id: str) -> JobRecord | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise StoreUnavailable("it is away")
        return await state.job(job_id)

    found = await wait_for_end(away_at_first, state.feed, record, within_s=10, client_left=_stays)

    assert found is not None
    assert found.state is JobState.SUCCEEDED


async def test_a_waiter_looks_for_itself_where_no_event_comes(store: Store, tmp_path: Path) -> None:
    state = state_on(store, api_config(store.url, tmp_path))
    await store.start()
    record = await store.job()
    await store.finish()

    found = await wait_for_end(state.job, state.feed, record, within_s=10, client_left=_stays)

    assert found is not None
    assert found.state is JobState.SUCCEEDED


async def _run_the_only_job(store: Store) -> None:
    async def queued() -> str | None:
        found = await store.jobs.list_newest(state=JobState.QUEUED, limit=1)
        return found[0].job_id if found else None

    job_id = await wait_until(queued, "the job is accepted")
    await store.finish(job_id, (await store.claim(job_id)).attempt)


async def _stays() -> bool:
    return False
