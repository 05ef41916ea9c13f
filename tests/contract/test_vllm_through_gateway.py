"""What our gateway makes of a vLLM that says no, falls asleep or dies: the real server and the simulated one.

What it passes on of one in good health is in ``test_vllm_answers.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kit.openai_client import openai_client
from tests.kit.store_fixture import Store
from tests.kit.vllm_backends import VllmClient
from tests.kit.vllm_fixtures import gateway_to
from tests.kit.waiting import wait_until

CHAT: list[Any] = [{"role": "user", "content": "hi"}]
LONG: dict[str, Any] = {"prompt": "the queue", "max_tokens": 1500}
DONE = "data: [DONE]"


@pytest.fixture
async def gateway(
    vllm: VllmClient, http: aiohttp.ClientSession, store: Store, tmp_path: Path
) -> AsyncIterator[VllmClient]:
    async with gateway_to(vllm, http, store, tmp_path) as client:
        yield client


class _Answer:
    """A long answer on its way through the gateway, streamed or not."""

    def __init__(self, gateway: VllmClient, *, stream: bool) -> None:
        self._gateway = gateway
        self._stream = stream
        self._began = not stream
        self.text = asyncio.create_task(self._read())

    async def _read(self) -> str:
        body = {**LONG, "model": self._gateway.server.name, "stream": self._stream}
        async with self._gateway.http.post(f"{self._gateway.door}/v1/completions", json=body) as response:
            first = await response.content.readuntil(b"\n\n") if self._stream else b""
            self._began = True
            return (first + await response.content.read()).decode()

    async def midway(self) -> bool:
        return self._began and (await self._gateway.queue())[0] == 1

    async def seen(self) -> bool:
        return self.text.done() or await self.midway()


async def _held_midway(gateway: VllmClient, *, stream: bool) -> asyncio.Task[str]:
    """The text of an answer on which the engine was working when it was stopped.

    The real one may be through before it can be: then once more.
    """
    for _ in range(8):
        answer = _Answer(gateway, stream=stream)
        await wait_until(answer.seen, "it generates")
        await gateway.operate("/pause?mode=keep")
        if await answer.midway():
            break
        await gateway.operate("/resume")
        await answer.text
    return answer.text


async def _job(store: Store, **wanted: str) -> None:
    """Wait until the newest job has these fields."""

    async def found() -> bool:
        (job,) = await store.jobs.list_newest(state=None, limit=1)
        told = {**job.fields, "state": job.state.value}
        return all(told.get(name) == value for name, value in wanted.items())

    await wait_until(found, f"the job has {wanted}")


async def test_openais_client_reads_it(gateway: VllmClient) -> None:
    body: dict[str, Any] = {"model": gateway.server.name, "messages": CHAT, "max_tokens": 6, "temperature": 0}
    async with openai_client(f"{gateway.door}/v1") as client:
        whole = await client.chat.completions.create(**body)
        async with await client.chat.completions.create(**body, stream=True) as stream:
            chunks = [chunk async for chunk in stream]

    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    assert whole.usage is not None
    assert (whole.usage.completion_tokens, chunks[-1].choices[0].finish_reason) == (6, "length")


async def test_what_it_has_not_is_refused_in_its_own_words(
    gateway: VllmClient, http: aiohttp.ClientSession
) -> None:
    body = {"model": gateway.server.name, "input": "hi"}
    answers = []
    for url in (gateway.server.url, gateway.door):
        async with http.post(f"{url}/v1/embeddings", json=body) as response:
            answers.append((response.status, await response.text()))

    assert answers[0] == answers[1]
    assert 400 <= answers[1][0] < 500


async def test_the_seventh_waits_where_it_would_be_refused(gateway: VllmClient, store: Store) -> None:
    await gateway.operate("/pause?mode=keep")
    refused = await gateway.metric("admission_rejections_total")
    direct = VllmClient(gateway.http, gateway.client, gateway.server)
    async with direct.inside(gateway.server.max_queued, max_tokens=2, held=True):
        seventh = asyncio.create_task(gateway.ask(prompt="hi", max_tokens=2))

        async def was_refused() -> bool:
            return await gateway.metric("admission_rejections_total") > refused

        await wait_until(was_refused, "the seventh is refused")
        await gateway.operate("/resume")
        status, answer = await seventh

    assert (status, answer["usage"]["completion_tokens"]) == (200, 2)
    await _job(store, state="succeeded", tries="0")


async def test_a_whole_answer_that_sleep_aborts_is_begun_anew(gateway: VllmClient, store: Store) -> None:
    reading = await _held_midway(gateway, stream=False)
    await gateway.operate("/sleep?level=1")
    await gateway.operate("/wake_up")
    answer = json.loads(await reading)

    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1500
    await _job(store, state="succeeded", tries="1")


def _error_at_the_end(text: str) -> str:
    """The words of the error with which a stream ended."""
    *_, error, end = text.removesuffix("\n\n").split("\n\n")
    assert end == DONE
    return str(json.loads(error.removeprefix("data: "))["error"]["message"])


async def test_a_stream_that_sleep_aborts_ends_in_an_error(gateway: VllmClient, store: Store) -> None:
    """vLLM itself ends it in good order."""
    reading = await _held_midway(gateway, stream=True)
    await gateway.operate("/sleep?level=1")
    text = await reading
    await gateway.operate("/wake_up")

    assert "aborted" in _error_at_the_end(text)
    await _job(store, state="failed", error_type="backend_interrupted")


async def test_a_stream_whose_engine_dies_ends_in_its_error(gateway: VllmClient, store: Store) -> None:
    """The last test of the file: the real server is gone afterwards and would be started again."""
    reading = await _held_midway(gateway, stream=True)
    gateway.server.kill_engine()
    text = await reading

    assert "EngineCore encountered an issue" in _error_at_the_end(text)
    await _job(store, state="failed", error_type="backend_error")
