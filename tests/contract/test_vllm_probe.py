"""``probe`` of vLLM, against answers recorded from vLLM 0.32 (CPU build) and older names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from shared.backends.completion import complete
from shared.backends.probe import Probe, Props, probe
from shared.states import BackendType, Residence
from tests.kit.backends import call, simulated
from tests.kit.configs import free_ports

LABELS = '{engine="0",model_name="tiny"}'
MODELS = {
    "object": "list",
    "data": [
        {
            "id": "tiny",
            "object": "model",
            "owned_by": "vllm",
            "root": "./tinyhf",
            "parent": None,
            "max_model_len": 2048,
        }
    ],
}
BUSY = f"""\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{LABELS} 4.0
vllm:num_requests_waiting{LABELS} 3.0
vllm:num_requests_waiting_by_reason{{engine="0",model_name="tiny",reason="capacity"}} 3.0
vllm:kv_cache_usage_perc{LABELS} 0.913
vllm:engine_sleep_state{{engine="0",model_name="tiny",sleep_state="awake"}} 1.0
vllm:engine_sleep_state{{engine="0",model_name="tiny",sleep_state="weights_offloaded"}} 0.0
vllm:num_requests_running_created{LABELS} 1.7e9
"""


@asynccontextmanager
async def vllm(metrics: str, health: int = 200) -> AsyncIterator[tuple[str, list[str]]]:
    """A server with vLLM's answers; yields its address and the paths asked for."""
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        answers: Mapping[str, web.Response] = {
            "/health": web.Response(status=health),
            "/metrics": web.Response(text=metrics),
            "/v1/models": web.json_response(MODELS),
        }
        return answers.get(request.path) or web.Response(status=404)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        await runner.cleanup()


async def look(http: aiohttp.ClientSession, url: str, props: Props | None = None) -> Probe:
    return await probe(http, url, BackendType.VLLM, timeout_s=2.0, props=props)


async def test_queue_and_kv_use_come_from_metrics_and_the_rest_from_models(
    http: aiohttp.ClientSession,
) -> None:
    async with vllm(BUSY) as (url, _):
        seen = await look(http, url)

    assert (seen.residence, seen.error, seen.simulated) == (Residence.RESIDENT, None, False)
    assert (seen.running, seen.waiting, seen.kv_use) == (4, 3, 0.913)
    assert (seen.slots, seen.context_tokens, seen.upstream_name) == (None, 2048, "tiny")


async def test_models_are_not_asked_for_again(http: aiohttp.ClientSession) -> None:
    async with vllm(BUSY) as (url, asked):
        first = await look(http, url)
        second = await look(http, url, first.props)

    assert asked == ["/health", "/metrics", "/v1/models", "/health", "/metrics"]
    assert (second.context_tokens, second.props) == (2048, first.props)


async def test_the_kv_gauge_is_found_under_its_old_name(http: aiohttp.ClientSession) -> None:
    async with vllm(f"vllm:gpu_cache_usage_perc{LABELS} 0.25\n") as (url, _):
        seen = await look(http, url)

    assert (seen.kv_use, seen.running, seen.waiting) == (0.25, None, None)


async def test_several_engines_add_their_queues_and_share_their_kv_use(http: aiohttp.ClientSession) -> None:
    metrics = (
        'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 1\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:kv_cache_usage_perc{engine="1"} 0.1\n'
    )
    async with vllm(metrics) as (url, _):
        seen = await look(http, url)

    assert seen.running == 3
    assert seen.kv_use == pytest.approx(0.3)


async def test_a_sleeping_engine_is_told_by_its_state_and_its_stale_gauges_are_unknown(
    http: aiohttp.ClientSession,
) -> None:
    async with vllm(BUSY.replace('sleep_state="awake"} 1.0', 'sleep_state="awake"} 0.0')) as (url, _):
        seen = await look(http, url)

    assert (seen.residence, seen.running, seen.waiting) == (Residence.SLEEPING, None, None)
    assert (seen.kv_use, seen.error) == (None, None)


async def test_a_dead_engine_has_failed(http: aiohttp.ClientSession) -> None:
    async with vllm(BUSY, health=503) as (url, _):
        seen = await look(http, url, Props(None, 2048, "tiny"))

    assert (seen.residence, seen.props, seen.context_tokens) == (Residence.FAILED, None, None)


async def test_a_port_that_is_not_open_yet_is_unloaded(http: aiohttp.ClientSession) -> None:
    seen = await look(http, f"http://127.0.0.1:{free_ports(1)[0]}")

    assert seen.residence is Residence.UNLOADED


async def test_a_model_simulated_as_vllm_is_probed_as_one(http: aiohttp.ClientSession) -> None:
    async with simulated("big", backend=BackendType.VLLM) as model:
        done = await complete(http, call(model.url, backend=BackendType.VLLM))
        seen = await look(http, model.url)

    assert done.output_tokens == 8
    assert (seen.residence, seen.simulated, seen.upstream_name) == (Residence.RESIDENT, True, "big")
    assert (seen.running, seen.waiting, seen.kv_use, seen.context_tokens) == (0, 0, 0.0, 4096)
