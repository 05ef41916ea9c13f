"""The simulated host as a whole: what it serves, how fast, and at what cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.simulator.card import Card
from services.simulator.control import ModelPatch
from services.simulator.faults import Fault, FaultKind
from services.simulator.host import SimulatedHost
from services.simulator.state import ModelState
from shared.backends.completion import complete
from shared.backends.errors import Broken
from shared.backends.http import HttpClient
from shared.config import SimulatorSettings
from shared.errors import ConfigError
from shared.registry import SPECIFICATION_MODELS, Registration
from shared.states import Residence
from tests.kit.backends import call, registration, simulated
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until


@pytest.fixture
async def host() -> AsyncIterator[SimulatedHost]:
    """Two small models on a card of 24 GB."""
    models = [registration("alpha", vram_gb=2.0), registration("org/beta", vram_gb=6.0)]
    async with SimulatedHost(models, SimulatorSettings(load_s=0), free_ports=True) as running:
        yield running


@pytest.mark.parametrize("model", SPECIFICATION_MODELS, ids=lambda model: model.name)
def test_the_specifications_models_are_served_at_their_speed(model: Registration) -> None:
    state = ModelState(model, SimulatorSettings(), Card(SimulatorSettings()))

    assert state.tokens_per_second == (200.0 if model.name == "tiny-llama-1b" else 150.0)
    assert (len(state.pool.slots), state.context_tokens) == (4, 4096)


async def test_registrations_tell_the_ports_really_listened_on(host: SimulatedHost) -> None:
    assert [model.port for model in host.registrations] == [
        backend.port for backend in host.backends.values()
    ]
    assert len({model.port for model in host.registrations}) == 2


async def test_a_simulated_model_without_port_cannot_be_served() -> None:
    model = registration(port=None, url="http://127.0.0.1:1")

    with pytest.raises(ConfigError, match="has no 'port'"):
        await SimulatedHost([model], SimulatorSettings()).start()


async def test_tests_can_set_faults_by_name(host: SimulatedHost, client: HttpClient) -> None:
    await host.set_fault("org/beta", Fault(kind=FaultKind.STATUS, status=500))

    with pytest.raises(Broken):
        await complete(client, call(host.backends["org/beta"].url))
    assert (await complete(client, call(host.backends["alpha"].url))).output_tokens == 8


async def test_a_host_can_be_started_again_after_it_was_stopped(client: HttpClient) -> None:
    host = SimulatedHost([registration()], SimulatorSettings(load_s=0), free_ports=True)
    for _ in range(2):
        async with host:
            assert (await complete(client, call(host.backends["small"].url))).output_tokens == 8


async def test_speedup_shortens_every_duration(client: HttpClient) -> None:
    settings = SimulatorSettings(load_s=10.0, speedup=100.0)
    model = registration(tokens_per_second=20.0)
    async with SimulatedHost([model], settings, free_ports=True) as host:
        backend = host.backends["small"]
        first = backend.residence
        await wait_until(lambda: backend.residence is Residence.RESIDENT, "loaded in 0.1 s", timeout_s=9.0)
        with Stopwatch() as watch:
            done = await complete(client, call(backend.url, {"prompt": "the queue", "max_tokens": 200}))
            away_ms = watch.away_s * 1000

    assert first is Residence.LOADING
    assert done.output_ms is not None
    assert 10 < done.output_ms < 1000 + away_ms, "without the speed-up 10 s"


async def test_a_long_prompt_takes_its_time_before_the_first_token(client: HttpClient) -> None:
    async with simulated(tokens_per_second=1000.0) as model:
        with Stopwatch() as watch:
            done = await complete(client, call(model.url, {"prompt": "x" * 16_000, "max_tokens": 2}))
            away_ms = watch.away_s * 1000

    assert done.prompt_tokens == 4000
    assert done.prompt_ms is not None
    assert 100 < done.prompt_ms < 300 + away_ms
    assert done.first_token_ms is not None
    assert done.first_token_ms > 180


async def test_the_speed_is_the_registered_one(client: HttpClient) -> None:
    async with simulated(tokens_per_second=300.0) as model:
        with Stopwatch() as watch:
            done = await complete(client, call(model.url, {"prompt": "the queue", "max_tokens": 150}))
            away_ms = watch.away_s * 1000

    assert done.output_ms is not None
    assert 350 < done.output_ms < 650 + away_ms


async def test_four_hundred_short_jobs_cost_less_than_a_second_of_one_core(
    client: HttpClient,
) -> None:
    async with simulated(slots=8, tokens_per_second=1e6) as model:
        started = time.process_time()
        for _ in range(25):
            await asyncio.gather(*(complete(client, call(model.url)) for _ in range(16)))
        spent = time.process_time() - started

    assert model.counters.served == 400
    assert spent < 1.0  # of which our own client takes about half


async def test_embeddings_are_small_and_deterministic(http: aiohttp.ClientSession) -> None:
    async with simulated() as model:
        answers = []
        for _ in range(2):
            async with http.post(f"{model.url}/v1/embeddings", json={"input": ["a", "b"]}) as response:
                answers.append(await response.json())

    assert answers[0] == answers[1]
    vectors = [item["embedding"] for item in answers[0]["data"]]
    assert [len(vector) for vector in vectors] == [8, 8]
    assert vectors[0] != vectors[1]
    assert answers[0]["system_fingerprint"] == "simulated"


def test_every_fault_kind_is_documented_in_the_patch_schema() -> None:
    kinds = ModelPatch.model_json_schema()["$defs"]["FaultKind"]["enum"]

    assert kinds == [kind.value for kind in FaultKind]
