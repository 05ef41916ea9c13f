"""``probe`` of vLLM where servers differ: recorded answers of 0.32, older names, other settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from pydantic import JsonValue

from shared.backends.probe import Probe, Props, probe
from shared.backends.vllm import ASLEEP, PAUSED
from shared.states import BackendType, Residence
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


SERVED = f"""\
vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="1000"}} 1.0
vllm:request_prompt_tokens_sum{LABELS} 3000.0
vllm:request_prompt_tokens_count{LABELS} 10.0
vllm:request_generation_tokens_sum{LABELS} 1000.0
vllm:request_generation_tokens_count{LABELS} 10.0
"""
"""1,000 blocks of 16 tokens, and ten requests of 300 + 100 tokens."""


@asynccontextmanager
async def vllm(
    metrics: str, health: int = 200, more: Mapping[str, JsonValue] | None = None
) -> AsyncIterator[tuple[str, list[str]]]:
    """A server with vLLM's answers and ``more`` objects by name; yields its address and what was asked."""
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        answers: Mapping[str, web.Response] = {
            "/health": web.Response(status=health),
            "/metrics": web.Response(text=metrics),
            "/v1/models": web.json_response(MODELS),
            **{f"/{name}": web.json_response(answer) for name, answer in (more or {}).items()},
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
    return await probe(http, url, BackendType.VLLM, timeout_s=10.0, props=props)


async def test_queue_and_kv_use_come_from_metrics_and_the_rest_from_models(
    http: aiohttp.ClientSession,
) -> None:
    async with vllm(BUSY) as (url, _):
        seen = await look(http, url)

    assert (seen.residence, seen.error, seen.simulated) == (Residence.RESIDENT, None, False)
    assert (seen.running, seen.waiting, seen.kv_use) == (4, 3, 0.913)
    assert (seen.slots, seen.context_tokens, seen.upstream_name) == (None, 2048, "tiny")


async def test_what_does_not_change_is_not_asked_for_again(http: aiohttp.ClientSession) -> None:
    async with vllm(BUSY) as (url, asked):
        first = await look(http, url)
        second = await look(http, url, first.props)

    assert asked == [
        "/health", "/metrics", "/v1/models", "/load", "/is_paused", "/health", "/metrics", "/load",
    ]  # fmt: skip
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
    asleep = BUSY.replace('"awake"} 1.0', '"awake"} 0.0').replace('_offloaded"} 0.0', '_offloaded"} 1.0')
    async with vllm(asleep) as (url, asked):
        seen = await look(http, url)

    assert (seen.residence, seen.running, seen.waiting) == (Residence.SLEEPING, None, None)
    assert (seen.kv_use, seen.error) == (None, ASLEEP)
    assert not {path for path in asked if "wake" in path}


async def test_a_dead_engine_has_failed(http: aiohttp.ClientSession) -> None:
    async with vllm(BUSY, health=503) as (url, _):
        seen = await look(http, url, Props(None, 2048, "tiny"))

    assert (seen.residence, seen.props, seen.context_tokens) == (Residence.FAILED, None, None)


async def test_a_port_that_is_not_open_yet_is_unloaded(http: aiohttp.ClientSession) -> None:
    seen = await look(http, f"http://127.0.0.1:{free_ports(1)[0]}")

    assert seen.residence is Residence.UNLOADED


@pytest.mark.parametrize(
    ("answers", "residence", "error"),
    [
        (
            {"is_sleeping": {"is_sleeping": True}, "is_paused": {"is_paused": True}},
            Residence.SLEEPING,
            ASLEEP,
        ),
        (
            {"is_sleeping": {"is_sleeping": False}, "is_paused": {"is_paused": True}},
            Residence.DRAINING,
            PAUSED,
        ),
        ({"is_sleeping": {"is_sleeping": False}}, Residence.RESIDENT, None),
        ({}, Residence.RESIDENT, None),
    ],
)
async def test_without_the_sleep_metric_the_endpoints_tell_where_there_are_any(
    http: aiohttp.ClientSession, answers: dict[str, JsonValue], residence: Residence, error: str | None
) -> None:
    """Where neither is there, nobody can put it to sleep over HTTP."""
    async with vllm(f"vllm:num_requests_running{LABELS} 0\n", more=answers) as (url, _):
        seen = await look(http, url)

    assert (seen.residence, seen.error) == (residence, error)


@pytest.mark.parametrize(("load", "waiting"), [(9, 5), (7, 3), (0, 3), (None, 3), ("many", 3)])
async def test_load_adds_what_has_not_reached_the_engine_yet(
    http: aiohttp.ClientSession, load: JsonValue, waiting: int
) -> None:
    """It is 0 on a server that was not told to count."""
    async with vllm(BUSY, more={"load": {"server_load": load}}) as (url, _):
        seen = await look(http, url)

    assert (seen.running, seen.waiting) == (4, waiting)


async def test_slots_are_what_the_kv_cache_holds_of_requests_of_mean_length(
    http: aiohttp.ClientSession,
) -> None:
    async with vllm(SERVED) as (url, _):
        seen = await look(http, url)

    assert seen.slots == 40


@pytest.mark.parametrize(
    ("metrics", "slots"),
    [
        (SERVED.replace("_count{", "_other{"), None),
        (SERVED.replace(" 10.0", " 0.0"), None),
        (SERVED.replace('num_gpu_blocks="1000"', 'num_gpu_blocks="None"'), None),
        (SERVED.replace("vllm:cache_config_info", "vllm:something_else"), None),
        (SERVED.replace('num_gpu_blocks="1000"', 'num_gpu_blocks="10"'), 1),
        (SERVED.replace('num_gpu_blocks="1000"', 'num_gpu_blocks="9999999"'), 256),
        (SERVED + 'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="1000"} 1.0\n', 80),
    ],
    ids=[
        "not counted",
        "none served",
        "blocks unknown",
        "no config",
        "at least 1",
        "at most 256",
        "engines add",
    ],
)
async def test_slots_are_unknown_or_bounded(
    http: aiohttp.ClientSession, metrics: str, slots: int | None
) -> None:
    async with vllm(metrics) as (url, _):
        seen = await look(http, url)

    assert seen.slots == slots


async def test_an_engine_that_is_stuck_leaves_what_was_read_before(http: aiohttp.ClientSession) -> None:
    """Seen: whatever asks the engine itself hangs, while ``/health`` and ``/metrics`` answer."""
    stuck = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/is_paused":
            await stuck.wait()
        if request.path == "/v1/models":
            return web.json_response(MODELS)
        return web.Response(text=BUSY if request.path == "/metrics" else '{"server_load":7}')

    runner = web.ServerRunner(web.Server(handle, handler_cancellation=True))
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    seen = await probe(http, f"http://127.0.0.1:{port}", BackendType.VLLM, timeout_s=0.5)
    stuck.set()
    await runner.cleanup()

    assert (seen.residence, seen.running, seen.waiting) == (Residence.RESIDENT, 4, 3)
    assert seen.error is not None
    assert "backend_timeout" in seen.error
