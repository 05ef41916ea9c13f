"""``complete`` against the real llama.cpp and the simulator."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
import pytest

from shared.backends.completion import complete
from shared.backends.errors import Rejected
from shared.backends.http import HttpClient
from tests.kit.backends import Backend, busy_slots, call, gauge, long_streams, wait_idle
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

CHAT: list[Any] = [{"role": "user", "content": "hi"}]
LONG: dict[str, Any] = {"prompt": "the queue", "max_tokens": 4000}


async def test_a_prompt_is_completed_with_usage_and_timings(backend: Backend, client: HttpClient) -> None:
    done = await complete(client, call(backend.url, {"prompt": "the queue", "max_tokens": 8}))

    assert (done.finish_reason, done.output_tokens, done.truncated) == ("length", 8, False)
    response: Any = done.response
    assert done.text == response["choices"][0]["text"]
    assert len(done.text.split()) >= 8
    assert done.prompt_tokens is not None
    assert done.prompt_tokens > 0
    assert done.first_token_ms is not None
    assert 0 < done.first_token_ms <= done.total_ms
    assert done.prompt_ms is not None
    assert done.output_ms is not None


@pytest.mark.parametrize("body", [{"prompt": "the queue"}, {"messages": CHAT}], ids=["prompt", "messages"])
async def test_the_aggregated_response_has_the_shape_of_an_unstreamed_one(
    backend: Backend, http: aiohttp.ClientSession, client: HttpClient, body: dict[str, Any]
) -> None:
    asked = call(backend.url, {**body, "max_tokens": 6})
    async with http.post(asked.url, json={**asked.body, "model": backend.name}) as response:
        plain = await response.json()

    done = await complete(client, asked)

    assert _shape(done.response) == _shape(plain)


def _shape(value: Any) -> Any:
    """Names and types, without the values."""
    if isinstance(value, dict):
        numbers = (int, float)
        return {
            name: "number" if isinstance(inner, numbers) else _shape(inner) for name, inner in value.items()
        }
    return [_shape(inner) for inner in value] if isinstance(value, list) else type(value)


async def test_calls_right_after_each_other_never_meet_a_closing_connection(
    backend: Backend, client: HttpClient
) -> None:
    answers = [await complete(client, call(backend.url)) for _ in range(40)]

    assert {answer.output_tokens for answer in answers} == {8}


async def test_simulated_text_says_so_and_is_the_same_for_the_same_seed(
    backend: Backend, client: HttpClient
) -> None:
    asked = call(backend.url, {"prompt": "the queue", "max_tokens": 12, "seed": 7, "temperature": 0})

    first, second = await complete(client, asked), await complete(client, asked)

    assert first.text == second.text
    assert first.text.startswith("[simulated small]") == backend.simulated


async def test_the_first_token_is_told_once_and_long_before_the_end(
    backend: Backend, client: HttpClient
) -> None:
    shares = []
    # The best of three: the machine may stand still in front of the first token.
    for _ in range(3):
        told: list[None] = []
        done = await complete(
            client, call(backend.url, {**LONG, "max_tokens": 600}), partial(told.append, None)
        )
        assert len(told) == 1
        assert done.first_token_ms is not None
        shares.append(done.first_token_ms / done.total_ms)

    assert min(shares) < 0.5


async def test_a_base_url_may_end_in_v1(backend: Backend, client: HttpClient) -> None:
    done = await complete(client, call(f"{backend.url}/v1/"))

    assert done.output_tokens == 8


async def test_a_prompt_beyond_the_context_is_rejected_in_the_backends_words(
    backend: Backend, client: HttpClient
) -> None:
    with pytest.raises(Rejected) as caught:
        await complete(client, call(backend.url, {"prompt": "the queue " * 8000, "max_tokens": 3}))

    assert (caught.value.type, caught.value.status) == ("backend_rejected", 400)
    assert "exceeds the available context size (4096 tokens)" in caught.value.detail


async def test_an_answer_beyond_the_limit_is_cut_and_its_slot_freed(
    backend: Backend, http: aiohttp.ClientSession, client: HttpClient
) -> None:
    before = await decodes(http, backend)

    done = await complete(client, call(backend.url, LONG, max_result_bytes=100))

    assert (done.truncated, done.finish_reason) == (True, "length")
    assert len(done.text.encode()) == 100
    await freed_early(http, backend, before)


async def test_cancelling_the_call_frees_the_slot_within_a_second(
    backend: Backend, http: aiohttp.ClientSession, client: HttpClient
) -> None:
    before, begun = await decodes(http, backend), asyncio.Event()
    task = asyncio.create_task(complete(client, call(backend.url, LONG), begun.set))
    await begun.wait()
    assert await busy_slots(http, backend.url) == 1

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await freed_early(http, backend, before)


async def test_a_client_that_leaves_a_stream_frees_its_slot_within_a_second(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    before = await decodes(http, backend)
    async with long_streams(http, backend.url, 1):

        async def busy() -> bool:
            return await busy_slots(http, backend.url) == 1

        await wait_until(busy, "the stream has its slot")

    await freed_early(http, backend, before)


async def decodes(http: aiohttp.ClientSession, backend: Backend) -> float:
    """Tokens that the backend has computed since it started, also for answers that nobody read."""
    return await gauge(http, backend.url, "llamacpp:n_decode_total")


async def freed_early(http: aiohttp.ClientSession, backend: Backend, before: float) -> None:
    """Within a second no slot is busy, and not because the 4,000 tokens were all generated."""

    async def free() -> bool:
        return await busy_slots(http, backend.url) == 0

    with Stopwatch() as left:
        await wait_until(free, "the slot is free")
        assert left.elapsed_s < 1
    assert await decodes(http, backend) - before < 3900


async def test_requests_beyond_the_slots_are_deferred_and_answered_in_the_end(
    backend: Backend, http: aiohttp.ClientSession, client: HttpClient
) -> None:
    body: dict[str, Any] = {"prompt": "the queue", "max_tokens": 800}
    tasks = [asyncio.create_task(complete(client, call(backend.url, body))) for _ in range(backend.slots + 3)]

    async def full() -> bool:
        running = await gauge(http, backend.url, "llamacpp:requests_processing")
        deferred = await gauge(http, backend.url, "llamacpp:requests_deferred")
        return (running, deferred) == (backend.slots, 3)

    await wait_until(full, "all slots run and three requests wait")
    answers = await asyncio.gather(*tasks)

    assert [answer.output_tokens for answer in answers] == [800] * (backend.slots + 3)
    await wait_idle(http, backend.url)


async def test_a_deferred_request_gets_no_headers_until_a_slot_takes_it(
    backend: Backend, http: aiohttp.ClientSession, client: HttpClient
) -> None:
    async with long_streams(http, backend.url, backend.slots):

        async def all_busy() -> bool:
            return await busy_slots(http, backend.url) == backend.slots

        await wait_until(all_busy, "all slots are busy")
        begun = asyncio.Event()
        queued = asyncio.create_task(complete(client, call(backend.url), begun.set))

        async def deferred() -> bool:
            return await gauge(http, backend.url, "llamacpp:requests_deferred") == 1

        await wait_until(deferred, "the request is deferred")
        assert not begun.is_set()

    done = await queued
    assert begun.is_set()
    assert done.output_tokens == 8
