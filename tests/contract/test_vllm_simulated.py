"""What only the simulated vLLM can be made to do: start slowly, hold memory, go wrong on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from services.simulator.faults import Fault, FaultKind
from services.simulator.host import SimulatedHost
from services.simulator.vllm_backend import VllmBackend
from services.simulator.vllm_engine import Engine, Limits
from shared.backends.completion import complete
from shared.backends.errors import BackendError, Broken, Interrupted, NotSent, Saturated
from shared.backends.http import HttpClient
from shared.backends.probe import probe
from shared.config import SimulatorSettings
from shared.registry import Registration
from shared.states import BackendType, Residence
from tests.kit.backends import call, registration
from tests.kit.vllm_backends import simulated_vllm
from tests.kit.waiting import wait_until

LONG: dict[str, Any] = {"prompt": "the queue", "max_tokens": 1500}


def asked(backend: VllmBackend, body: dict[str, Any] | None = None) -> Any:
    return call(backend.url, body, upstream_name="tiny", backend=BackendType.VLLM)


async def seen(http: aiohttp.ClientSession, backend: VllmBackend) -> Residence:
    return (await probe(http, backend.url, BackendType.VLLM, timeout_s=10.0)).residence


async def failure(client: HttpClient, backend: VllmBackend) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await complete(client, asked(backend))
    return caught.value


async def test_its_port_is_shut_until_it_is_ready_but_its_memory_is_taken(
    http: aiohttp.ClientSession,
) -> None:
    settings = SimulatorSettings(load_s=5.0, speedup=10.0, foreign_gb=0)
    model = registration("tiny", backend=BackendType.VLLM, vram_gb=20.0)
    async with SimulatedHost([model], settings, free_ports=True) as host:
        backend = host.backends["tiny"]
        assert isinstance(backend, VllmBackend)
        starting = await seen(http, backend), backend.residence
        used_mb = host.card.memory_used_mb
        await wait_until(lambda: backend.residence is Residence.RESIDENT, "it is ready")

        async def answers() -> bool:
            return await seen(http, backend) is Residence.RESIDENT

        await wait_until(answers, "its port is open")

    assert starting == (Residence.UNLOADED, Residence.LOADING)
    assert used_mb == 20 * 1024


async def test_its_pool_is_the_same_idle_and_busy_and_almost_gone_asleep(client: HttpClient) -> None:
    settings = SimulatorSettings(load_s=0, foreign_gb=0)
    model = registration("tiny", backend=BackendType.VLLM, vram_gb=22.08, slots=4, tokens_per_second=500)
    async with SimulatedHost([model], settings, free_ports=True) as host:
        backend = host.backends["tiny"]
        assert isinstance(backend, VllmBackend)
        idle_mb = host.card.memory_used_mb
        begun = asyncio.Event()
        task = asyncio.create_task(complete(client, asked(backend, LONG), begun.set))
        await begun.wait()
        busy_mb = host.card.memory_used_mb
        await backend.sleep()
        asleep_mb = host.card.memory_used_mb
        with pytest.raises(Interrupted):
            await task
        await backend.load()
        awake_mb = host.card.memory_used_mb

    assert idle_mb == busy_mb == awake_mb == pytest.approx(0.92 * 24 * 1024)
    assert 0 < asleep_mb < 0.1 * idle_mb


async def test_without_development_mode_sleep_and_pause_are_not_there(http: aiohttp.ClientSession) -> None:
    async with simulated_vllm() as backend:
        backend.model.dev_mode = False
        statuses = []
        for path in ("/sleep", "/wake_up", "/pause", "/resume"):
            async with http.post(backend.url + path) as response:
                statuses.append(response.status)
        found = await probe(http, backend.url, BackendType.VLLM, timeout_s=10.0)

    assert statuses == [404] * 4
    assert (found.residence, found.error) == (Residence.RESIDENT, None)


async def test_everything_says_that_it_is_simulated(http: aiohttp.ClientSession, client: HttpClient) -> None:
    paths = ("/health", "/load", "/version", "/v1/models", "/metrics", "/is_paused", "/nowhere")
    async with simulated_vllm() as backend:
        for path in paths:
            async with http.get(backend.url + path) as response:
                assert response.headers["X-Simulated"] == "true"
        done = await complete(client, asked(backend))

    assert done.text.startswith("[simulated tiny]")
    assert done.response["system_fingerprint"] == "simulated"


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (Fault(kind=FaultKind.STATUS, status=503, retry_after_s=2), Saturated, "currently busy"),
        (Fault(kind=FaultKind.STATUS, status=500), Broken, "simulated fault"),
        (Fault(kind=FaultKind.SSE_ERROR, status=500), Broken, "in the middle"),
        (Fault(kind=FaultKind.SSE_ERROR, status=503, after_tokens=0), Saturated, "in the middle"),
        (Fault(kind=FaultKind.DIE_MID_STREAM), Interrupted, ""),
        (Fault(kind=FaultKind.REFUSE), NotSent, ""),
        (Fault(kind=FaultKind.ENGINE_DEATH, after_tokens=5), Broken, "EngineCore"),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Fault) else "",
)
async def test_the_faults_of_other_models_are_its_own_too(
    client: HttpClient, fault: Fault, expected: type[BackendError], words: str
) -> None:
    async with simulated_vllm() as backend:
        await backend.set_fault(fault)
        error = await failure(client, backend)

    assert type(error) is expected
    assert words in error.detail


async def test_a_hang_ends_when_it_is_healed(client: HttpClient) -> None:
    async with simulated_vllm() as backend:
        await backend.set_fault(Fault(kind=FaultKind.HANG, times=1))
        task = asyncio.create_task(complete(client, asked(backend)))
        await wait_until(lambda: backend.running == 1, "it holds its place")
        await backend.set_fault(None)
        done = await task

    assert done.output_tokens == 8


async def test_a_dead_engine_answers_503_then_refuses_and_can_be_started_anew(
    http: aiohttp.ClientSession,
    client: HttpClient,
) -> None:
    async with simulated_vllm() as backend:
        begun = asyncio.Event()
        task = asyncio.create_task(complete(client, asked(backend, LONG), begun.set))
        await begun.wait()
        await backend.set_fault(Fault(kind=FaultKind.ENGINE_DEATH))
        with pytest.raises(Broken, match="EngineCore"):
            await task
        dead = await seen(http, backend), type(await failure(client, backend))
        await wait_until(lambda: backend.residence is Residence.UNLOADED, "the process has ended")
        gone = await seen(http, backend), type(await failure(client, backend))
        await backend.load()
        done = await complete(client, asked(backend))

    assert dead == (Residence.FAILED, Broken)
    assert gone == (Residence.UNLOADED, NotSent)
    assert done.output_tokens == 8


async def test_a_dead_engine_may_be_replaced_at_once(client: HttpClient) -> None:
    async with simulated_vllm() as backend:
        await backend.set_fault(Fault(kind=FaultKind.ENGINE_DEATH))
        await backend.load()
        done = await complete(client, asked(backend))

    assert done.output_tokens == 8


class Control:
    def __init__(self, http: aiohttp.ClientSession, host: SimulatedHost) -> None:
        self._http, self._url = http, host.control_url

    async def patch(self, name: str, status: int = 200, **body: Any) -> Any:
        async with self._http.patch(f"{self._url}/models/{name}", json=body) as response:
            assert response.status == status, await response.text()
            return await response.json()


@pytest.fixture
async def host() -> AsyncIterator[SimulatedHost]:
    """A vLLM beside a llama.cpp."""
    models: list[Registration] = [registration("tiny", backend=BackendType.VLLM), registration("alpha")]
    async with SimulatedHost(models, SimulatorSettings(load_s=0), free_ports=True) as running:
        yield running


async def test_the_control_port_puts_to_sleep_pauses_kills_and_brings_back(
    http: aiohttp.ClientSession, host: SimulatedHost
) -> None:
    control = Control(http, host)
    orders: list[dict[str, Any]] = [
        {"residence": "sleeping"}, {"residence": "resident"}, {"paused": True}, {"paused": False},
        {"fault": {"kind": "engine_death"}}, {"residence": "resident"}, {"residence": "unloaded"},
    ]  # fmt: skip
    told = [(await control.patch("tiny", **order))["residence"] for order in orders]

    assert told == ["sleeping", "resident", "draining", "resident", "failed", "resident", "unloaded"]


async def test_the_control_port_sets_the_kv_cache_and_admission(
    http: aiohttp.ClientSession, client: HttpClient, host: SimulatedHost
) -> None:
    backend = host.backends["tiny"]
    assert isinstance(backend, VllmBackend)
    await Control(http, host).patch("tiny", kv_blocks=600, max_queued=1)
    backend.state.tokens_per_second = 100.0
    begun = asyncio.Event()
    task = asyncio.create_task(complete(client, asked(backend, LONG), begun.set))
    await begun.wait()
    refused = await failure(client, backend)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with http.get(f"{backend.url}/metrics") as response:
        metrics = await response.text()

    assert isinstance(refused, Saturated)
    assert 'num_gpu_blocks="600"' in metrics


@pytest.mark.parametrize(
    "body", [{"paused": True}, {"kv_blocks": 9}, {"max_queued": 2}, {"fault": {"kind": "engine_death"}}]
)
async def test_what_only_a_vllm_can_do_is_refused_of_a_llama_cpp(
    http: aiohttp.ClientSession, host: SimulatedHost, body: dict[str, Any]
) -> None:
    answer = await Control(http, host).patch("alpha", 422, **body)

    assert "not vLLM" in answer["error"]["message"]


async def test_the_line_is_served_in_order_also_after_a_preemption() -> None:
    """Three of two blocks each, of which two fit in a cache of five; the last to begin makes room."""
    engine = Engine(Limits(max_num_seqs=3, num_blocks=6, block_size=10), lambda _: None)
    with engine.sequence(20) as first, engine.sequence(20) as second, engine.sequence(20) as third:
        assert (engine.running, engine.waiting) == (2, 1)
        await engine.turn(first, 30)
        assert (first.blocks, second.runs, third.runs) == (3, True, False)
        waits = asyncio.create_task(engine.turn(second, 21))
        await wait_until(lambda: engine.preemptions == 1, "the second finds no block")
        assert (engine.running, engine.waiting, second.blocks) == (1, 2, 0)
        assert engine.gauges.kv_use == 0.6
        assert not waits.done()
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)

    assert (engine.running, engine.waiting, engine.gauges.kv_use) == (0, 0, 0.0)
