"""A real llama.cpp, registered over HTTP while everything runs, gives an answer and is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.api.benchmark_bodies import Benchmark
from tests.kit.configs import free_ports
from tests.kit.llama_server import LlamaServer
from tests.kit.stack import Json, running_stack

pytestmark = pytest.mark.llamacpp


async def test_a_server_registered_over_http_is_measured_by_its_own_timings(
    tmp_path: Path, redis_url: str, small_llama: LlamaServer
) -> None:
    config: Json = {
        "api": {"port": free_ports(1)[0]},
        "gpu": {"source": "none", "interval_s": 0.2},
        "models": [{"name": "absent", "port": free_ports(1)[0], "vram_gb": 9}],
    }
    async with running_stack(tmp_path, redis_url, config, ("monitor", "router", "api")) as stack:
        entry = {"url": small_llama.url, "vram_gb": 0.5, "agent_types": ["Chat"]}
        async with stack.http.put(f"{stack.api}/v1/gpu/models/small", json=entry) as put:
            assert put.status == 201, await put.text()
        job = await stack.ended(await stack.submit(prompt="hi", model="small", max_tokens=4))
        query = "model_name=small&count=4&max_tokens=32&prompt_tokens=64&concurrency=2"
        async with stack.http.post(f"{stack.api}/v1/gpu/benchmark-model?{query}") as answer:
            body = Benchmark.model_validate(await answer.json())

    assert (job["state"], job["decision"]["model"]) == ("succeeded", "small")
    assert (body.state, body.succeeded, body.errors, body.simulated) == ("succeeded", 4, {}, False)
    # 32 each: a random model may end its text early, and must be kept from it to be measured.
    assert body.output_tokens == 4 * 32
    assert body.decode_tokens_per_second is not None
    assert body.prefill_tokens_per_second is not None
    assert body.decode_tokens_per_second.p50 > 1
    assert body.prefill_tokens_per_second.p50 > 1
