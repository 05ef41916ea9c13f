"""POST /v1/jobs answers without asking Redis again, and alike on both of its ways: plain, and FastAPI's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kit.api_fixture import BOUND, MAX_BODY_BYTES, Answer, ApiClient, api_config, serving, state_on
from tests.kit.api_keys import bearer, made
from tests.kit.store_fixture import Store, new_job

BY_FASTAPI = "?wait=0"
"""Query parameters are read by FastAPI; this one changes nothing else."""
_OWN = {"date", "x-request-id", "x-orchestrator-overhead-ms"}
"""Headers that no two answers share."""

Said = tuple[int, Mapping[str, str], str]


def _said(answer: Answer) -> Said:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return answer.status, {name: headers[name] for name in sorted(headers.keys() - _OWN)}, answer.text


async def _alike(api: ApiClient, body: Any, **headers: str) -> Answer:
    """The answer of the plain way, once it is seen to be FastAPI's word for word."""
    plain = await api.post(body, **headers)
    assert _said(plain) == _said(await api.post(body, query=BY_FASTAPI, **headers))
    return plain


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "hi", "params": {"a": NaN}}', 400),
        (b'{"prompt": "hi", "params": {"a": 1e999}}', 422),
        (b'{"prompt": "hi", "metadata": ' + b"[" * 150 + b"]" * 150 + b"}", 422),
        ([], 422),
        ({}, 422),
        ({"prompt": 5}, 422),
        ({"prompt": "hi", "promt": 1}, 422),
        ({"messages": "hi"}, 422),
        ({"messages": [{"content": "hi"}]}, 422),
        ({"prompt": "hi", "messages": [{"role": "user"}]}, 422),
        ({"prompt": "hi", "stop": 5}, 422),
        ({"prompt": "hi", "stop": ["a", 5]}, 422),
        ({"prompt": "hi", "metadata": [1]}, 422),
        ({"prompt": "hi", "priority": 10}, 422),
        ({"prompt": "hi", "mode": "fastest"}, 422),
        ({"prompt": "hi", "params": {"stream": True}}, 422),
        ({"prompt": "hi", "model": "gamma"}, 422),
        ({"prompt": "hi", "agent_type": "Insurance"}, 422),
        ({"prompt": "hi", "metadata": {"a": "x" * 20_000}}, 422),
    ],
)
async def test_a_wrong_body_is_refused_in_the_same_words_on_both_ways(
    api: ApiClient, api_store: Store, body: Any, status: int
) -> None:
    assert (await _alike(api, body)).problem(status)["instance"] == "/v1/jobs"
    assert await api_store.jobs.counts() == (0, 0)


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", "a\tb"])
async def test_a_wrong_key_is_refused_in_the_same_words_on_both_ways(api: ApiClient, key: str) -> None:
    refused = await _alike(api, {"prompt": "hi"}, Idempotency_Key=key)

    assert refused.problem(422)["field"] == "Idempotency-Key"


async def test_a_key_of_another_body_is_refused_in_the_same_words_on_both_ways(api: ApiClient) -> None:
    await api.post({"prompt": "hi"}, Idempotency_Key="k-1")

    assert (await _alike(api, {"prompt": "ho"}, Idempotency_Key="k-1")).status == 422


async def test_a_full_queue_is_told_in_the_same_words_on_both_ways(api: ApiClient) -> None:
    await asyncio.gather(*(api.post({"prompt": "hi"}) for _ in range(BOUND)))

    assert (await _alike(api, {"prompt": "hi"})).headers["retry-after"] == "30"


async def test_a_body_too_large_is_refused_in_the_same_words_on_both_ways(api: ApiClient) -> None:
    assert (await _alike(api, b" " * (MAX_BODY_BYTES + 1))).status == 413


async def test_a_body_too_large_in_chunks_is_refused_in_the_same_words_on_both_ways(api: ApiClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    plain, by_fastapi = [
        await api.call("POST", f"/v1/jobs{query}", data=chunks()) for query in ("", BY_FASTAPI)
    ]

    assert plain.status == 413
    assert _said(plain) == _said(by_fastapi)


async def test_a_body_in_chunks_is_put_together(api: ApiClient, api_store: Store) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in (b'{"prom', b'pt": "h', b'i"}'):
            yield piece

    answer = await api.call("POST", "/v1/jobs", data=chunks())

    claimed = await api_store.claim(answer.body["job_id"])
    assert json.loads(claimed.body)["prompt"] == "hi"


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "nonsense"])
async def test_a_body_is_read_as_json_whatever_it_is_called(api: ApiClient, media: str) -> None:
    assert (await api.post({"prompt": "hi"}, Content_Type=media)).status == 202


@pytest.mark.parametrize("query", ["?x=1", "?wait=0&wait=0", "?wait=-1", "?wait=soon", "?wait=1e9", "?wait="])
async def test_query_parameters_are_still_checked(api: ApiClient, api_store: Store, query: str) -> None:
    assert (await api.post({"prompt": "hi"}, query=query)).problem(422)["field"] in {"x", "wait"}
    assert await api_store.jobs.counts() == (0, 0)


async def test_an_accepted_job_is_told_as_it_is_read_right_after(api: ApiClient) -> None:
    job = {
        "messages": [{"role": "user", "content": "hi"}],
        "agent_type": "Chat", "priority": 7, "deadline_s": 12.345, "caller": "ann", "metadata": {"a": ["ü"]},
    }  # fmt: skip
    answers = [
        await api.post({"prompt": "hi"}),
        await api.post({"prompt": "hi", "model": "alpha"}, X_Request_ID="r-1"),
        await api.post(job),
        await api.post({**job, "priority": 9}),
        await api.post(job, query=BY_FASTAPI),
    ]

    for answer in answers:
        read = await api.get(answer.headers["location"])
        assert answer.status == 202
        assert {**answer.body, "position": None} == {**read.body, "position": None}
        assert answer.body.keys() == read.body.keys()
    assert [answer.body["position"] for answer in answers] == [1, 1, 1, 1, 3]
    assert answers[1].body["request_id"] == "r-1"
    assert answers[2].body["deadline_ms"] - answers[2].body["submitted_ms"] == 12_345


async def test_an_accepted_job_is_told_why_its_queue_waits(api: ApiClient, api_store: Store) -> None:
    await api_store.jobs.hold(await api.submit(model="alpha"), "model_busy", "alpha is full — 4 of 4", ())

    answer = await api.post({"prompt": "hi", "model": "alpha"})

    assert answer.body["decision"]["code"] == "model_busy"
    assert answer.body == (await api.get(answer.headers["location"])).body
    assert answer.headers["x-orchestrator-reason"] == "alpha is full ? 4 of 4"


async def test_a_repeated_key_is_told_how_its_job_stands_now(api: ApiClient, api_store: Store) -> None:
    job_id = (await api.post({"prompt": "hi"}, Idempotency_Key="k-1")).body["job_id"]
    await api_store.finish(job_id, (await api_store.claim(job_id)).attempt)

    again = await api.post({"prompt": "hi"}, Idempotency_Key="k-1")

    assert (again.status, again.body["state"], again.body["result"]["text"]) == (202, "succeeded", "hi")


async def test_the_reply_to_a_submission_tells_the_place_and_the_hold_of_what_it_queued(store: Store) -> None:
    first = await store.jobs.submit(new_job("j1"), bound=BOUND)
    await store.jobs.hold("j1", "model_busy", "alpha is full", ())
    second = await store.jobs.submit(new_job("j2"), bound=BOUND)

    assert [(one.position, bool(one.hold)) for one in (first, second)] == [(1, False), (2, True)]
    assert second.hold == (await store.job("j2")).hold


async def test_a_reply_tells_no_place_of_a_job_that_was_accepted_before_or_is_attached(store: Store) -> None:
    """It may run, or have ended, by now; and nobody asks for the place of one that is attached."""
    await store.jobs.submit(new_job("j1"), bound=BOUND, idempotency="k", digest="d")
    await store.claim("j1")
    replayed = await store.jobs.submit(new_job("j1"), bound=BOUND, idempotency="k", digest="d")
    repeated = await store.jobs.submit(new_job("j2"), bound=BOUND, idempotency="k", digest="d")
    attached = await store.jobs.submit(new_job("j3", attached_to="api-1.b"), bound=BOUND)

    assert [str(one.outcome) for one in (replayed, repeated, attached)] == [
        "ACCEPTED",
        "DUPLICATE",
        "ACCEPTED",
    ]
    assert [one.position for one in (replayed, repeated, attached)] == [None, None, None]


async def test_a_submission_needs_no_second_exchange_with_redis(api: ApiClient, api_store: Store) -> None:
    await api.submit()
    before = await _ranks_read(api_store)

    for _ in range(5):
        await api.submit()

    # Once each by the script that accepts them; whoever reads a waiting job does it again.
    assert await _ranks_read(api_store) - before == 5


async def _ranks_read(store: Store) -> int:
    stats: Any = await store.redis.info("commandstats")
    calls: int = stats["cmdstat_zrank"]["calls"]
    return calls


async def test_a_key_without_the_model_is_refused_in_the_same_words_on_both_ways(
    store: Store, tmp_path: Path
) -> None:
    state = state_on(store, api_config(store.url, tmp_path))
    await store.fleet.register(state.settings.registrations)
    key = await made(store, models=("alpha",), in_flight=1)
    async with serving(state) as url, aiohttp.ClientSession(headers=bearer(key)) as http:
        api = ApiClient(http, url)
        refused = await _alike(api, {"prompt": "hi", "model": "beta"})
        accepted = await api.post({"prompt": "hi", "model": "alpha"})
        limited = await _alike(api, {"prompt": "hi", "model": "alpha"})

    assert (refused.status, accepted.status, limited.status) == (403, 202, 429)


async def test_an_unexpected_error_is_a_500_in_the_same_words_on_both_ways(
    store: Store, tmp_path: Path
) -> None:
    state = state_on(store, api_config(store.url, tmp_path))
    await store.fleet.register(state.settings.registrations)
    # Somebody wrote over a key of ours: no error that passes, and none that the api knows.
    await store.redis.set(store.keys.static("live"), "x")
    async with serving(state) as url, aiohttp.ClientSession() as http:
        plain, by_fastapi = [await _failed(http, f"{url}/v1/jobs{query}") for query in ("", BY_FASTAPI)]
    await store.redis.delete(store.keys.static("live"))

    assert plain.problem(500)["title"] == "The api failed"
    assert _said(plain) == _said(by_fastapi)


async def _failed(http: aiohttp.ClientSession, url: str) -> Answer:
    # The server closes the connection behind an answer to what it did not expect.
    async with http.post(url, json={"prompt": "hi"}, headers={"Connection": "close"}) as got:
        return Answer(got.status, got.headers, await got.text())


async def test_a_redis_away_is_told_in_the_same_words_on_both_ways(store: Store, tmp_path: Path) -> None:
    state = state_on(store, api_config(store.url, tmp_path))
    state.usable.clear()
    async with serving(state) as url, aiohttp.ClientSession() as http:
        away = await _alike(ApiClient(http, url), {"prompt": "hi"})

    assert away.problem(503)
    assert away.headers["retry-after"] == "2"
