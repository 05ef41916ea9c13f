"""Models registered by name and URL: kind, slots, context and name at the server are what that says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.simulator.vllm_backend import VllmBackend
from tests.kit.configs import free_ports
from tests.kit.llama_server import LlamaServer
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.vllm_backends import simulated_vllm
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.llamacpp


@pytest.fixture
async def vllm() -> AsyncIterator[VllmBackend]:
    async with simulated_vllm("org/served") as backend:
        yield backend


@pytest.fixture
async def stack(
    tmp_path: Path, redis_url: str, small_llama: LlamaServer, vllm: VllmBackend
) -> AsyncIterator[Stack]:
    """Two models of which nothing is said but where they are, once each has been looked at."""
    config: Json = {
        "api": {"port": free_ports(1)[0]},
        "gpu": {"source": "none", "interval_s": 0.2},
        "models": [
            {"name": "llama", "url": small_llama.url},
            {"name": "large", "url": vllm.url},
        ],
    }
    async with running_stack(tmp_path, redis_url, config, ("monitor", "router", "api")) as stack:
        await wait_until(lambda: _known(stack, "llama", "upstream_name"), "the llama.cpp is probed")
        await wait_until(lambda: _known(stack, "large", "upstream_name"), "the vLLM is probed")
        yield stack


async def test_what_a_llama_cpp_says_of_itself_is_used(stack: Stack, small_llama: LlamaServer) -> None:
    status = await _status(stack, "llama")
    assert (status["slots"], status["context_tokens"]) == (small_llama.slots, small_llama.context_tokens)
    assert (status["backend"], status["registration"]["backend"]) == ("llama_cpp", None)
    assert await _known(stack, "llama", "upstream_name") == small_llama.alias
    await _answers(stack, "llama")


async def test_what_a_vllm_says_of_itself_is_used(stack: Stack, vllm: VllmBackend) -> None:
    status = await _status(stack, "large")
    assert (status["backend"], status["context_tokens"]) == ("vllm", vllm.model.context_tokens)
    await wait_until(lambda: _owner_is(stack, "large", "vllm"), "clients are told the kind")
    assert await _known(stack, "large", "upstream_name") == "org/served"
    await _answers(stack, "large")

    # How many requests fit into its memory is told by the length of those that it has served.
    await wait_until(lambda: _known(stack, "large", "slots"), "its slots are known")
    assert (await _status(stack, "large"))["slots"] >= 1


async def _answers(stack: Stack, name: str) -> None:
    """A job and a chat, both under the name that the registration gave."""
    job = await stack.ended(await stack.submit(prompt="the gpu", model=name, max_tokens=4))
    assert (job["state"], job["decision"]["model"]) == ("succeeded", name)

    body = {"model": name, "max_tokens": 4, "messages": [{"role": "user", "content": "the gpu"}]}
    async with stack.http.post(f"{stack.api}/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        assert (await answer.json())["model"] == name


async def _known(stack: Stack, model: str, field: str) -> str | None:
    value = await stack.redis.hget(stack.keys.model(model), field)
    return None if value is None else str(value)


async def _owner_is(stack: Stack, model: str, owner: str) -> bool:
    async with stack.http.get(f"{stack.api}/v1/models/{model}") as answer:
        return bool((await answer.json())["owned_by"] == owner)


async def _status(stack: Stack, model: str) -> Json:
    async with stack.http.get(f"{stack.api}/v1/gpu/models/{model}") as answer:
        found: Json = await answer.json()
        return found
