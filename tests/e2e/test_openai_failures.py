"""What OpenAI's own client makes of everything that goes wrong, and what a client that leaves gives back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.kit.openai_client import openai_client
from tests.kit.openai_stack import BOUND, OpenAiStack
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.llamacpp, pytest.mark.asyncio(loop_scope="module")]
MESSAGES: list[Any] = [{"role": "user", "content": "the gpu queue"}]
SHORT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 4}
LONG: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 7000}


@asynccontextmanager
async def counting_client(
    setup: OpenAiStack, max_retries: int
) -> AsyncIterator[tuple[openai.AsyncOpenAI, list[int]]]:
    """A client that repeats, and the status of every answer that it got."""
    statuses: list[int] = []

    async def note(response: Any) -> None:
        statuses.append(response.status_code)

    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
    async with openai_client(setup.base_url, max_retries=max_retries, http_client=http) as client:
        yield client, statuses


async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(openai_stack: OpenAiStack) -> None:
    for model in ("gpt-7", "auto:Nobody"):
        with pytest.raises(openai.NotFoundError) as caught:
            await openai_stack.client.chat.completions.create(model=model, **SHORT)

        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert "known: " in caught.value.message
    assert "MedicalQA" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"model": ""}, "model"),
        ({"extra_body": {"stream": "yes"}}, "stream"),
        ({"extra_headers": {"X-Priority": "urgent"}}, "X-Priority"),
    ],
)
async def test_a_bad_request_names_what_is_wrong(
    openai_stack: OpenAiStack, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        await openai_stack.client.chat.completions.create(**{"model": "small", **SHORT, **changes})

    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": "hot"}, "type must be number"),
        ({"messages": [{"role": "user"}]}, "must contain 'content'"),
        (
            {"messages": [{"role": "user", "content": "the gpu " * 6000}]},
            "exceeds the available context size",
        ),
    ],
    ids=["wrong type", "no content", "too long"],
)
async def test_what_the_backend_refuses_is_told_in_its_own_words(
    openai_stack: OpenAiStack, changes: dict[str, Any], words: str, *, stream: bool
) -> None:
    body: dict[str, Any] = {"model": "small", **SHORT, **changes, "stream": stream}
    with pytest.raises(openai.BadRequestError, match=words) as direct:
        await openai_stack.direct["small"].chat.completions.create(**body)
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        await openai_stack.client.chat.completions.create(**body)

    assert caught.value.body == direct.value.body
    headers = caught.value.response.headers
    assert (await openai_stack.stack.ended(headers["x-orchestrator-job-id"]))["state"] == "failed"
    # That was the request's fault and not the model's.
    assert await openai_stack.client.chat.completions.create(model="small", **SHORT)


async def test_what_a_backend_cannot_do_is_asked_for_once(openai_stack: OpenAiStack) -> None:
    """llama.cpp says 501, at which the client would come again."""
    before = len(openai_stack.recorded.posts)
    async with counting_client(openai_stack, 2) as (client, statuses):
        with pytest.raises(openai.InternalServerError, match="does not support embeddings"):
            await client.embeddings.create(model="small", input="hi")

    assert (statuses, len(openai_stack.recorded.posts)) == ([501], before + 1)


async def test_calls_that_nobody_here_has_are_not_found(openai_stack: OpenAiStack) -> None:
    with pytest.raises(openai.NotFoundError):
        await openai_stack.client.moderations.create(input="hi")


def _chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c1", "model": "small", "choices": [choice]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (b'data: {"error":{"message":"the engine died","code":500}}\n\n', "the engine died"),
        (b"", "the stream ended before the answer did"),
    ],
    ids=["error event", "silent stop"],
)
async def test_an_answer_that_breaks_off_raises_while_it_is_read(
    openai_stack: OpenAiStack, end: bytes, words: str
) -> None:
    proxy = openai_stack.recorded
    proxy.stream = (_chunk("hello"), end)
    proxy.more.clear()
    chat = openai_stack.client.chat.completions
    async with await chat.create(model="small", **SHORT, stream=True) as stream:
        first = await anext(stream)
        proxy.more.set()
        with pytest.raises(openai.APIError, match=words):
            await anext(stream)
        job = stream.response.headers["x-orchestrator-job-id"]

    assert first.choices[0].delta.content == "hello"
    assert (await openai_stack.stack.ended(job))["state"] == "failed"
    assert await openai_stack.client.chat.completions.create(model="small", **SHORT)


async def test_a_response_that_breaks_off_raises_while_it_is_read(openai_stack: OpenAiStack) -> None:
    delta = {"type": "response.output_text.delta", "delta": "hello", "item_id": "m1", "output_index": 0}
    event = b"event: response.output_text.delta\ndata: " + json.dumps(delta).encode() + b"\n\n"
    openai_stack.recorded.stream = (event,)
    async with await openai_stack.client.responses.create(model="small", input="hi", stream=True) as stream:
        with pytest.raises(openai.APIError, match="the stream ended before the answer did"):
            assert [event.type async for event in stream]

    assert await openai_stack.client.chat.completions.create(model="small", **SHORT)


@asynccontextmanager
async def full_queue(setup: OpenAiStack) -> AsyncIterator[Sequence[asyncio.Task[ChatCompletion]]]:
    """bi-medix2 is busy, and as many wait as may; many jobs ended lately, so that a place is free soon."""
    proxy = setup.proxies["bi-medix2"]
    proxy.gate.clear()
    before = len(proxy.posts)
    chat = setup.client.chat.completions
    tasks = [asyncio.create_task(chat.create(model="bi-medix2", **SHORT))]
    try:
        await wait_until(lambda: len(proxy.posts) > before, "the only slot is taken")
        for number in range(BOUND):
            tasks.append(asyncio.create_task(chat.create(model="bi-medix2", **SHORT)))
            await setup.waiting(number + 1)
        minute = int((await setup.stack.redis.time())[0]) // 60
        for one in (minute, minute + 1):
            await setup.stack.redis.set(setup.stack.keys.of("ended", str(one)), 600, ex=120)
        yield tasks
    finally:
        proxy.gate.set()
        await asyncio.gather(*(task for task in tasks if not task.cancelled()))


async def test_a_full_queue_is_a_rate_limit_after_all_retries(openai_stack: OpenAiStack) -> None:
    async with full_queue(openai_stack), counting_client(openai_stack, 1) as (client, statuses):
        started = time.monotonic()
        with pytest.raises(openai.RateLimitError, match=f"queue.bound = {BOUND}") as caught:
            await client.chat.completions.create(model="small", **SHORT)
        took_s = time.monotonic() - started

    assert statuses == [429, 429]
    assert (caught.value.code, caught.value.type) == ("queue_full", "rate_limit_error")
    # Left to itself the client comes again within half a second.
    assert took_s >= int(caught.value.response.headers["retry-after"]) == 1


async def _raw(client: openai.AsyncOpenAI) -> Any:
    return await client.chat.completions.with_raw_response.create(model="small", **SHORT)


async def test_a_queue_that_empties_meanwhile_lets_the_retry_in(openai_stack: OpenAiStack) -> None:
    async with counting_client(openai_stack, 2) as (client, statuses):
        async with full_queue(openai_stack):
            asked = asyncio.create_task(_raw(client))
            await wait_until(lambda: statuses, "the first try is refused")
        answer = await asked

    assert statuses[-1] == 200
    assert answer.retries_taken == len(statuses) - 1 >= 1


async def test_a_503_of_ours_is_repeated_by_the_client_until_redis_is_back(openai_stack: OpenAiStack) -> None:
    redis = openai_stack.stack.redis
    async with counting_client(openai_stack, 5) as (client, statuses):
        await redis.config_set("min-replicas-to-write", 1)
        try:
            asked = asyncio.create_task(_raw(client))
            await wait_until(lambda: statuses, "the first try is refused")
        finally:
            await redis.config_set("min-replicas-to-write", 0)
        answer = await asked

    assert (statuses[0], statuses[-1]) == (503, 200)
    assert answer.retries_taken == len(statuses) - 1
    assert answer.parse().choices[0].message.content


async def _cancelled(setup: OpenAiStack, job_id: str) -> None:
    job = await setup.stack.ended(job_id)
    assert (job["state"], job["error"]["type"]) == ("cancelled", "client_left")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_runs_out_of_patience_gives_its_slot_back(
    openai_stack: OpenAiStack, *, stream: bool
) -> None:
    """A whole answer is generated all the time; a stream is held up before its first byte."""
    gate, before = openai_stack.proxies["bi-medix2"].gate, await openai_stack.newest()
    body: dict[str, Any] = {**LONG, "model": "bi-medix2", "stream": stream, "timeout": 1.0}
    if stream:
        gate.clear()
    try:
        with pytest.raises(openai.APITimeoutError):
            await openai_stack.client.chat.completions.create(**body)
    finally:
        gate.set()

    job = await openai_stack.newest()
    assert job != before
    assert (await openai_stack.stack.ended(job))["state"] == "cancelled"
    await openai_stack.busy("bi-medix2", 0)
    assert await openai_stack.stack.in_flight("bi-medix2") == 0


async def test_a_client_that_gives_up_in_the_queue_leaves_no_job_there(openai_stack: OpenAiStack) -> None:
    async with full_queue(openai_stack) as tasks:
        tasks[-1].cancel()
        await asyncio.gather(tasks[-1], return_exceptions=True)
        await openai_stack.waiting(BOUND - 1)
        job = await openai_stack.newest()
        assert (await openai_stack.stack.ended(job))["state"] == "cancelled"


@pytest.mark.parametrize("way", ["close", "leave the block", "cancel the task"])
async def test_a_stream_that_is_given_up_frees_its_slot_within_a_second(
    openai_stack: OpenAiStack, way: str
) -> None:
    began = asyncio.Event()

    async def read() -> None:
        stream = await openai_stack.client.chat.completions.create(model="bi-medix2", **LONG, stream=True)
        async with stream:
            async for _ in stream:
                began.set()
                if way == "close":
                    await stream.close()
                if way != "cancel the task":
                    return

    reading = asyncio.create_task(read())
    await began.wait()
    if way == "cancel the task":
        reading.cancel()
    with Stopwatch(*openai_stack.stack.pids) as left:
        await asyncio.gather(reading, return_exceptions=True)
        await openai_stack.busy("bi-medix2", 0)
        assert left.elapsed_s < 1
    await _cancelled(openai_stack, await openai_stack.newest())
    assert await openai_stack.stack.in_flight("bi-medix2") == 0


async def test_a_thread_that_leaves_its_stream_frees_the_slot_within_a_second(
    openai_stack: OpenAiStack,
) -> None:
    def ask() -> None:
        client = openai.OpenAI(base_url=openai_stack.base_url, api_key="any", max_retries=0)
        with client, client.chat.completions.create(model="bi-medix2", **LONG, stream=True) as stream:
            assert next(stream)
            left.restart()

    with Stopwatch(*openai_stack.stack.pids) as left:
        await asyncio.to_thread(ask)
        await openai_stack.busy("bi-medix2", 0)
        assert left.elapsed_s < 1
    await _cancelled(openai_stack, await openai_stack.newest())
