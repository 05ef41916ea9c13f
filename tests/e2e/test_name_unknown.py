"""A vLLM under another name than its registration's: what comes before its first probe waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.simulator.vllm_backend import VllmBackend
from tests.kit.configs import free_ports
from tests.kit.stack import Json, Stack
from tests.kit.vllm_backends import simulated_vllm
from tests.kit.waiting import wait_until


@pytest.fixture
async def vllm() -> AsyncIterator[VllmBackend]:
    async with simulated_vllm("org/served") as backend:
        yield backend


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str, vllm: VllmBackend) -> AsyncIterator[Stack]:
    """Router and api, and no monitor."""
    config: Json = {
        "redis": {"url": redis_url},
        "api": {"port": free_ports(1)[0]},
        "gpu": {"source": "none", "interval_s": 0.2},
        "models": [{"name": "large", "url": vllm.url}, {"name": "org/served", "url": vllm.url}],
    }
    async with Stack(tmp_path, config) as stack:
        stack.start("router")
        stack.start("api")
        await wait_until(lambda: "Redis answers" in stack.output("api"), "the api is up", timeout_s=30)
        yield stack


async def test_jobs_and_requests_wait_with_a_reason_until_its_monitor_has_found_the_name_out(
    stack: Stack, vllm: VllmBackend
) -> None:
    """Without the mend vLLM's 404 ended them for good."""
    job = await stack.submit(prompt="hi", model="large", max_tokens=4)
    chat = asyncio.create_task(_chat(stack, "large"))

    async def held() -> Json | None:
        found = await stack.job(job)
        decision = found["decision"] or {}
        return found if decision.get("code") == "name_unknown" else None

    waiting = await wait_until(held, "the job is held for the name", timeout_s=20)
    assert "its server knows no model 'large'" in waiting["decision"]["reason"]
    assert (waiting["state"], waiting["tries"]) == ("queued", 0)
    assert vllm.counters.received == 0

    stack.start("monitor")
    ended = await stack.ended(job)
    assert (ended["state"], ended["tries"], ended["decision"]["model"]) == ("succeeded", 0, "large")
    status, body = await asyncio.wait_for(chat, 30)
    assert (status, body["model"]) == (200, "large")


async def test_a_model_under_its_servers_own_name_needs_no_monitor(stack: Stack) -> None:
    ended = await stack.ended(await stack.submit(prompt="hi", model="org/served", max_tokens=4))
    assert (ended["state"], ended["tries"]) == ("succeeded", 0)
    assert (await _chat(stack, "org/served"))[0] == 200


async def _chat(stack: Stack, model: str) -> tuple[int, Json]:
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "the gpu"}]}
    async with stack.http.post(f"{stack.api}/v1/chat/completions", json=body) as answer:
        return answer.status, await answer.json()
