"""The whole path against real llama.cpp: two servers of different size, both used, their own words."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.configs import free_ports
from tests.kit.journal import Journal, most_in_flight
from tests.kit.llama_server import LlamaServer
from tests.kit.stack import Json, Stack, running_stack

pytestmark = pytest.mark.llamacpp
PROMPT = "the gpu queue and the router"
JOBS = 60


@pytest.fixture
async def stack(
    tmp_path: Path, redis_url: str, small_llama: LlamaServer, large_llama: LlamaServer
) -> AsyncIterator[Stack]:
    config: Json = {
        "api": {"port": free_ports(1)[0]},
        "gpu": {"source": "none", "interval_s": 0.2},
        "models": [
            {"name": "small", "url": small_llama.url, "vram_gb": 0.5, "agent_types": ["Chat"]},
            {"name": "large", "url": large_llama.url, "vram_gb": 1.5, "agent_types": ["Chat", "Insurance"]},
        ],
    }
    async with running_stack(tmp_path, redis_url, config, ("monitor", "router", "api")) as stack:
        yield stack
        assert Journal(await stack.events()).faults() == []


async def _direct(stack: Stack, server: LlamaServer, tokens: int) -> str:
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    async with stack.http.post(f"{server.url}/v1/completions", json=body) as answer:
        return str((await answer.json())["choices"][0]["text"])


async def test_a_job_posted_by_curl_is_answered_by_llama_cpp(stack: Stack, small_llama: LlamaServer) -> None:
    body = json.dumps({"prompt": PROMPT, "model": "small", "max_tokens": 12, "temperature": 0})

    curl = await asyncio.create_subprocess_exec(
        "curl", "-sS", f"{stack.api}/v1/jobs?wait=20", "-H", "Content-Type: application/json", "-d", body,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, _ = await curl.communicate()

    job = json.loads(printed)
    assert (job["state"], job["decision"]["model"], job["decision"]["backend"]) == (
        "succeeded",
        "small",
        "llama_cpp",
    )
    assert job["result"]["text"] == await _direct(stack, small_llama, 12)
    assert job["result"]["usage"]["completion_tokens"] == 12
    assert job["timings"]["first_token_ms"] > 0


async def test_two_servers_share_a_load_and_every_text_is_its_servers_own(
    stack: Stack, small_llama: LlamaServer, large_llama: LlamaServer
) -> None:
    words = {
        "small": await _direct(stack, small_llama, 40),
        "large": await _direct(stack, large_llama, 40),
    }
    assert words["small"] != words["large"]

    posted = [
        await stack.submit(prompt=PROMPT, agent_type="Chat", max_tokens=40, temperature=0)
        for _ in range(JOBS)
    ]
    jobs = await asyncio.gather(*(stack.ended(job) for job in posted))

    assert {job["state"] for job in jobs} == {"succeeded"}
    used = Counter(job["decision"]["model"] for job in jobs)
    assert set(used) == {"small", "large"}
    for job in jobs:
        assert job["result"]["text"] == words[job["decision"]["model"]]
    peaks = most_in_flight(await stack.events())
    assert peaks["small"] <= small_llama.slots
    assert peaks["large"] <= large_llama.slots


async def test_a_job_that_needs_a_long_context_goes_to_the_server_that_has_it(stack: Stack) -> None:
    job = await stack.ended(
        await stack.submit(prompt=PROMPT, agent_type="Chat", min_context_tokens=6000, max_tokens=4)
    )

    assert (job["state"], job["decision"]["model"]) == ("succeeded", "large")


async def test_messages_are_answered_through_the_chat_endpoint(stack: Stack) -> None:
    job = await stack.ended(
        await stack.submit(messages=[{"role": "user", "content": PROMPT}], model="large", max_tokens=8)
    )

    assert job["result"]["response"]["object"] == "chat.completion"
    assert job["result"]["text"]
