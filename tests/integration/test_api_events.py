"""GET /v1/jobs/{id}/events: history, live events, resuming, trimmed parts, clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from services.api.event_stream import JobEvents
from shared.store.records import FailKind, StreamEntry
from tests.kit.api_fixture import ApiClient, api_config, end, hear, serving, state_on
from tests.kit.store_fixture import Store, open_store
from tests.kit.waiting import wait_until

_ENDED = ["job.queued", "job.started", "job.succeeded"]


async def test_an_ended_job_tells_its_whole_story_as_it_is_in_the_stream(
    api: ApiClient, api_store: Store
) -> None:
    other = await api.submit()
    job_id = await api.submit()
    await api.call("DELETE", f"/v1/jobs/{other}")
    await api_store.finish(job_id, (await api_store.claim(job_id)).attempt)

    answer = await api.get(f"/v1/jobs/{job_id}/events")

    told = [_parse(block) for block in answer.text.split("\n\n") if block]
    stored = await api_store.events(job_id)
    assert [event["event"] for event in told] == _ENDED
    assert [event["id"] for event in told] == [entry.id for entry in stored]
    assert [json.loads(event["data"]) for event in told] == [dict(entry.fields) for entry in stored]
    assert answer.headers["cache-control"] == "no-store"


async def test_a_live_job_is_followed_to_its_end(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    async with api.http.get(f"{api.url}/v1/jobs/{job_id}/events") as answer:
        events = _events(answer)
        assert (await anext(events))["event"] == "job.queued"
        attempt = (await api_store.claim(job_id)).attempt
        assert (await anext(events))["event"] == "job.started"
        await api_store.finish(job_id, attempt)

        rest = [event["event"] async for event in events]

    assert rest == ["job.succeeded"]


async def test_a_client_that_comes_back_gets_what_it_lacks(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    await api_store.finish(job_id, (await api_store.claim(job_id)).attempt)
    ids = [entry.id for entry in await api_store.events(job_id)]

    async def told(last: str) -> tuple[int, list[str]]:
        answer = await api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last})
        return answer.status, [_parse(block)["event"] for block in answer.text.split("\n\n") if block]

    assert await told(ids[0]) == (200, _ENDED[1:])
    assert await told(ids[1]) == (200, _ENDED[2:])
    assert await told(ids[2]) == (204, [])
    assert await told("0-0") == (200, _ENDED)


@pytest.mark.parametrize("last", ["x", "1", "1-x", "1-2-3", "-", "$"])
async def test_a_last_event_id_that_is_none_is_refused(api: ApiClient, last: str) -> None:
    job_id = await api.submit()

    answer = await api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last})

    assert answer.problem(422)["field"] == "Last-Event-ID"


async def test_a_trimmed_beginning_is_said(unchecked: Store, tmp_path: Path) -> None:
    await unchecked.start()
    await unchecked.jobs.cancel("j1", "no longer needed")
    await unchecked.fail(kind=FailKind.CANCELLED)
    await unchecked.redis.xdel(unchecked.keys.events, (await unchecked.events())[0].id)

    blocks = await _told(unchecked, tmp_path)

    assert blocks[0].startswith(": earlier events")
    assert [_parse(block)["event"] for block in blocks[1:]] == [
        "job.started",
        "job.cancel_requested",
        "job.cancelled",
    ]


async def test_a_story_that_is_gone_altogether_ends_at_once(unchecked: Store, tmp_path: Path) -> None:
    await unchecked.submit()
    await unchecked.jobs.cancel("j1", "no longer needed")
    await unchecked.redis.delete(unchecked.keys.events)

    assert await _told(unchecked, tmp_path) == [
        ": earlier events of this job are kept no longer",
        ": nothing more will come",
    ]


async def test_of_an_ended_job_nothing_is_read_past_its_end(unchecked: Store, tmp_path: Path) -> None:
    """Its final event is gone, and ten pages of other jobs' events came minutes later."""
    await unchecked.start()
    await unchecked.finish()
    final = (await unchecked.events())[-1]
    await unchecked.redis.xdel(unchecked.keys.events, final.id)
    later_ms = int(final.id.partition("-")[0]) + 120_000
    for number in range(30):
        await unchecked.redis.xadd(unchecked.keys.events, {"job_id": "other"}, id=f"{later_ms}-{number}")
    state, reads = state_on(unchecked, api_config(unchecked.url, tmp_path)), 0

    async def counted(start: str) -> list[StreamEntry]:
        nonlocal reads
        reads += 1
        return await state.read_events(start)

    counting = replace(state, read_events=counted)
    text = b"".join([chunk async for chunk in JobEvents(counting, await unchecked.job(), None).stream()])

    assert [line[7:] for line in text.decode().splitlines() if line.startswith("event: ")] == _ENDED[:2]
    assert text.endswith(b": nothing more will come\n\n")
    assert reads <= 4


async def test_a_client_that_leaves_frees_everything(store: Store, tmp_path: Path) -> None:
    state = state_on(store, api_config(store.url, tmp_path))
    await store.submit()
    async with serving(state) as url, aiohttp.ClientSession() as session:
        answers = [await session.get(f"{url}/v1/jobs/j1/events") for _ in range(5)]
        for answer in answers:
            assert (await anext(_events(answer)))["event"] == "job.queued"
        assert state.feed.subscribers == 5
        for answer in answers:
            answer.close()
        await wait_until(lambda: state.feed.subscribers == 0, "all places are free")

    assert await store.state() == "queued"


async def test_silence_is_broken_by_pings_and_a_missed_end_is_found(store: Store, tmp_path: Path) -> None:
    state = state_on(store, api_config(store.url, tmp_path))  # its feed does not run: it misses everything
    await store.start()
    stream = JobEvents(state, await store.job(), None, ping_s=0.05).stream()
    seen = [await anext(stream) for _ in range(4)]
    await store.finish()

    rest = b"".join([chunk async for chunk in stream]).decode()

    assert seen[2:] == [b": ping\n\n"] * 2
    assert rest.count("event: job.succeeded\n") == 1
    assert state.feed.subscribers == 0


async def test_an_event_that_is_read_and_heard_comes_once(store: Store, tmp_path: Path) -> None:
    """Other jobs fill more than one page between this one's events, so that both happen."""
    state = state_on(store, api_config(store.url, tmp_path))
    feed = asyncio.create_task(state.feed.run())
    await store.submit()
    for number in range(10):
        await store.submit(f"other-{number}")
    stream = JobEvents(state, await store.job(), None, ping_s=0.05).stream()
    chunks = [await anext(stream)]
    with state.feed.subscribe("j1") as heard:
        await store.claim()
        await hear(heard, "job.started")
    while chunks[-1] != b": ping\n\n":  # all that is in the stream was read by then
        chunks.append(await anext(stream))
    await store.finish()

    text = b"".join([*chunks, *[chunk async for chunk in stream]]).decode()

    assert [line[7:] for line in text.splitlines() if line.startswith("event: ")] == _ENDED
    await end(feed)


@pytest.fixture
async def unchecked(redis_url: str) -> AsyncIterator[Store]:
    """A store that a test may damage."""
    async with open_store(redis_url) as store:
        yield store


async def _told(store: Store, directory: Path) -> list[str]:
    """What a client gets of ``j1``, which has ended."""
    stream = JobEvents(state_on(store, api_config(store.url, directory)), await store.job(), None).stream()
    async with asyncio.timeout(30):
        text = b"".join([chunk async for chunk in stream]).decode()
    return [block for block in text.split("\n\n") if block]


def _parse(block: str) -> dict[str, str]:
    lines = (line.partition(": ") for line in block.splitlines())
    return {name: value for name, _, value in lines}


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    block = ""
    async for line in answer.content:
        if line.strip():
            block += line.decode()
        elif block:
            yield _parse(block)
            block = ""
