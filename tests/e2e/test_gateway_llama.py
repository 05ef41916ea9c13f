"""The OpenAI-compatible calls on real llama.cpp: its dialects, its errors, its slots."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.backends import busy_slots
from tests.kit.configs import free_ports
from tests.kit.llama_server import LlamaServer
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.llamacpp
MESSAGES = [{"role": "user", "content": "the gpu queue"}]


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str, small_llama: LlamaServer) -> AsyncIterator[Stack]:
    config: Json = {
        "api": {"port": free_ports(1)[0]},
        "gpu": {"source": "none", "interval_s": 0.2},
        "models": [{"name": "tiny", "url": small_llama.url, "vram_gb": 0.5, "agent_types": ["Chat"]}],
    }
    async with running_stack(tmp_path, redis_url, config, ("monitor", "router", "api")) as stack:
        yield stack


async def _post(stack: Stack, url: str, path: str, body: Json) -> tuple[int, Any, str]:
    async with stack.http.post(url + path, json=body) as answer:
        return answer.status, answer.headers, await answer.text()


def _said(stream: str) -> str:
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def test_chats_say_what_llama_cpp_says_streamed_or_not(stack: Stack, small_llama: LlamaServer) -> None:
    chat: Json = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    path = "/v1/chat/completions"
    direct = json.loads((await _post(stack, small_llama.url, path, chat))[2])

    _, headers, whole = await _post(stack, stack.api, path, chat)
    _, _, streamed = await _post(stack, stack.api, path, {**chat, "stream": True})

    answer = json.loads(whole)
    assert answer["choices"] == direct["choices"]
    assert answer["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"] == 12
    assert _said(streamed) == direct["choices"][0]["message"]["content"]
    assert streamed.endswith("data: [DONE]\n\n")
    job = await stack.ended(headers["x-orchestrator-job-id"])
    assert (job["state"], job["result"]["usage"]["completion_tokens"]) == ("succeeded", 12)
    assert job["timings"]["first_token_ms"] > 0


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/responses", {"input": "the gpu queue", "max_output_tokens": 8}, "response.completed"),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 8}, "message_stop"),
    ],
)
async def test_the_other_dialects_pass_through(stack: Stack, path: str, body: Json, last: str) -> None:
    status, headers, whole = await _post(stack, stack.api, path, {**body, "model": "tiny"})
    first = await stack.ended(headers["x-orchestrator-job-id"])
    _, headers, streamed = await _post(stack, stack.api, path, {**body, "model": "tiny", "stream": True})
    second = await stack.ended(headers["x-orchestrator-job-id"])

    assert status == 200
    assert "usage" in json.loads(whole)
    assert f"event: {last}\n" in streamed
    for job in (first, second):
        assert (job["state"], job["result"]["usage"]["output_tokens"]) == ("succeeded", 8)


async def test_llama_cpps_own_errors_reach_the_client(stack: Stack, small_llama: LlamaServer) -> None:
    long: Json = {"model": "tiny", "prompt": "the gpu " * 5000, "max_tokens": 4}
    for path, body in (("/v1/completions", long), ("/v1/embeddings", {"model": "tiny", "input": "hi"})):
        direct_status, _, direct = await _post(stack, small_llama.url, path, body)
        status, headers, said = await _post(stack, stack.api, path, body)

        assert (status, json.loads(said)) == (direct_status, json.loads(direct))
        assert 400 <= status < 600
        assert (await stack.ended(headers["x-orchestrator-job-id"]))["state"] == "failed"


async def test_a_client_that_leaves_frees_llama_cpps_slot(stack: Stack, small_llama: LlamaServer) -> None:
    for stream in (True, False):
        body: Json = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4000, "stream": stream}
        asked = asyncio.create_task(_post(stack, stack.api, "/v1/chat/completions", body))

        async def busy() -> bool:
            return await busy_slots(stack.http, small_llama.url) == 1

        async def free() -> bool:
            return await busy_slots(stack.http, small_llama.url) == 0

        await wait_until(busy, "llama.cpp generates")
        with Stopwatch(*stack.pids) as left:
            asked.cancel()
            await wait_until(free, "the slot is free")
            assert left.elapsed_s < 1
