"""What POST /v1/jobs refuses, bounds and repeats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.kit.api_fixture import BOUND, MAX_BODY_BYTES, ApiClient
from tests.kit.store_fixture import Store


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "hi"} x',
        b"[" * 100_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "hi", "temperature": NaN}',
        b'{"prompt": "hi", "metadata": {"a": -Infinity}}',
        b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
    ],
)
async def test_a_body_that_is_no_json_is_a_400_problem(api: ApiClient, api_store: Store, body: bytes) -> None:
    assert "JSON" in (await api.post(body)).problem(400)["detail"]
    assert await api_store.jobs.counts() == (0, 0)


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ([], None, "JSON object"),
        (None, None, "JSON object"),
        ({}, None, "exactly one of"),
        ({"prompt": "hi", "messages": [{"role": "user"}]}, None, "exactly one of"),
        ({"prompt": 5}, "prompt", "string"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"messages": [{"content": "x"}]}, None, "role"),
        ({"messages": "hi"}, "messages", "list"),
        ({"prompt": "hi", "promt": 1}, "promt", "not a field"),
        ({"prompt": "hi", "priority": 10}, "priority", "9"),
        ({"prompt": "hi", "max_tokens": "many"}, "max_tokens", "integer"),
        ({"prompt": "hi", "deadline_s": 0}, "deadline_s", "greater than 0"),
        ({"prompt": "hi", "metadata": [1]}, "metadata", "dictionary"),
        ({"prompt": "hi", "params": {"stream": True}}, None, "stream"),
        ({"prompt": "hi", "model": "gamma"}, "model", "known: alpha, beta"),
        ({"prompt": "hi", "agent_type": "Insurance"}, "agent_type", "known: Chat, MedicalQA"),
        ({"prompt": "hi", "agent_type": "a\r\nb: c"}, "agent_type", "known: Chat, MedicalQA"),
    ],
)
async def test_a_wrong_field_is_named_with_its_remedy(
    api: ApiClient, api_store: Store, body: Any, field: str | None, said: str
) -> None:
    problem = (await api.post(body)).problem(422)

    assert problem.get("field") == field
    assert said in problem["detail"]
    assert await api_store.jobs.counts() == (0, 0)


async def test_a_number_that_overflows_is_refused_where_it_stands(api: ApiClient) -> None:
    answer = await api.post(b'{"prompt": "hi", "params": {"logit_bias": [1, 1e999]}}')

    assert answer.problem(422)["field"] == "params"


async def test_nesting_beyond_what_can_be_stored_is_refused(api: ApiClient) -> None:
    answer = await api.post(b'{"prompt": "hi", "metadata": {"deep": ' + b"[" * 150 + b"]" * 150 + b"}}")

    assert "nested" in answer.problem(422)["detail"]


async def test_deep_nesting_comes_back_as_it_was_sent(api: ApiClient) -> None:
    nested: Any = []
    for _ in range(50):
        nested = [nested]
    job_id = await api.submit(metadata={"deep": nested})

    assert (await api.job(job_id))["metadata"] == {"deep": nested}


async def test_a_prompt_of_ten_megabytes_arrives_whole(api: ApiClient, api_store: Store) -> None:
    prompt = "ü" * (5 * 2**20)
    answer = await api.post(json.dumps({"prompt": prompt}, ensure_ascii=False).encode())

    claimed = await api_store.claim(answer.body["job_id"])

    assert json.loads(claimed.body)["prompt"] == prompt


async def test_a_body_over_the_limit_is_refused_by_its_declared_length(api: ApiClient) -> None:
    answer = await api.post(b" " * (MAX_BODY_BYTES + 1))

    assert "api.max_body_bytes" in answer.problem(413)["detail"]


async def test_a_body_over_the_limit_is_refused_without_a_declared_length(
    api: ApiClient, api_store: Store
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b"x" * 2**20

    answer = await api.call("POST", "/v1/jobs", data=chunks())

    assert "api.max_body_bytes" in answer.problem(413)["detail"]
    assert await api_store.jobs.counts() == (0, 0)


async def test_a_client_that_leaves_amid_its_body_does_no_harm(api: ApiClient, api_store: Store) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    assert (await api.get("/healthz")).status == 200
    assert await api_store.jobs.counts() == (0, 0)


async def test_a_repeated_key_answers_the_same_job(api: ApiClient, api_store: Store) -> None:
    job = {"prompt": "hi", "agent_type": "Chat"}
    first = await api.post(job, Idempotency_Key="k-1")
    again = await asyncio.gather(*(api.post(job, Idempotency_Key="k-1") for _ in range(5)))

    assert {answer.status for answer in again} == {202}
    assert {answer.headers["location"] for answer in again} == {first.headers["location"]}
    assert {answer.body["job_id"] for answer in again} == {first.body["job_id"]}
    assert await api_store.jobs.counts() == (1, 0)


async def test_a_repeated_key_answers_the_job_as_it_has_become(api: ApiClient, api_store: Store) -> None:
    job_id = (await api.post({"prompt": "hi"}, Idempotency_Key="k-1")).body["job_id"]
    await api_store.finish(job_id, (await api_store.claim(job_id)).attempt)

    again = await api.post({"prompt": "hi"}, query="?wait=5", Idempotency_Key="k-1")

    assert (again.status, again.body["job_id"], again.body["result"]["text"]) == (200, job_id, "hi")


async def test_a_key_stands_for_one_body(api: ApiClient, api_store: Store) -> None:
    first = await api.post({"prompt": "hi"}, Idempotency_Key="k-1")

    problem = (await api.post({"prompt": "ho"}, Idempotency_Key="k-1")).problem(422)

    assert problem["field"] == "Idempotency-Key"
    assert first.body["job_id"] in problem["detail"]
    assert await api_store.jobs.counts() == (1, 0)


async def test_two_callers_may_use_one_key(api: ApiClient) -> None:
    answers = [
        await api.post({"prompt": "hi", "caller": caller}, Idempotency_Key="k-1") for caller in ("ann", "bob")
    ]

    assert [answer.status for answer in answers] == [202, 202]
    assert len({answer.body["job_id"] for answer in answers}) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", "a\tb"])
async def test_a_key_that_is_none_is_refused(api: ApiClient, key: str) -> None:
    assert (await api.post({"prompt": "hi"}, Idempotency_Key=key)).problem(422)["field"] == "Idempotency-Key"


async def test_the_longest_key_is_taken(api: ApiClient) -> None:
    assert (await api.post({"prompt": "hi"}, Idempotency_Key="x" * 255)).status == 202


async def test_a_full_queue_answers_429_and_when_to_come_again(api: ApiClient, api_store: Store) -> None:
    answers = await asyncio.gather(*(api.post({"prompt": "hi"}) for _ in range(BOUND + 5)))
    refused = [answer for answer in answers if answer.status != 202]

    assert len(refused) == 5
    for answer in refused:
        assert f"queue.bound = {BOUND}" in answer.problem(429)["detail"]
        assert answer.headers["retry-after"] == "30"
    assert await api_store.jobs.counts() == (BOUND, 0)


async def test_the_time_to_come_again_follows_from_how_many_jobs_end(
    api: ApiClient, api_store: Store
) -> None:
    for number in range(20):
        await api_store.start(f"done-{number}", f"n{number}")
        await api_store.finish(f"done-{number}")
    await asyncio.gather(*(api.post({"prompt": "hi"}) for _ in range(BOUND)))

    again_s = int((await api.post({"prompt": "hi"})).headers["retry-after"])

    assert 60 / 20 <= again_s <= 120 / 20  # 20 jobs in the last one to two minutes


async def test_a_path_or_method_that_is_none_is_a_problem_too(api: ApiClient) -> None:
    assert (await api.get("/v1/job")).problem(404)["instance"] == "/v1/job"
    assert (await api.get("/v1/jobs/")).status == 404
    answer = await api.call("PUT", "/v1/jobs")
    assert answer.problem(405)["title"] == "Method Not Allowed"
    assert answer.headers["allow"] == "GET, POST"
