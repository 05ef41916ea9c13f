"""The simulator's control port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from services.simulator.host import SimulatedHost
from shared.backends.completion import complete
from shared.backends.http import HttpClient
from shared.backends.probe import probe
from shared.config import SimulatorSettings
from shared.states import BackendType, Residence
from tests.kit.backends import call, registration, simulated
from tests.kit.waiting import wait_until


@pytest.fixture
async def host() -> AsyncIterator[SimulatedHost]:
    """Two small models on a card of 24 GB."""
    models = [registration("alpha", vram_gb=2.0), registration("org/beta", vram_gb=6.0)]
    async with SimulatedHost(models, SimulatorSettings(load_s=0), free_ports=True) as running:
        yield running


class Control:
    """The control port as a person with curl uses it."""

    def __init__(self, http: aiohttp.ClientSession, host: SimulatedHost) -> None:
        self._http = http
        self._url = host.control_url

    async def get(self, path: str) -> Any:
        async with self._http.get(self._url + path) as response:
            assert response.status == 200
            return await response.json()

    async def patch(self, path: str, body: Any, status: int = 200) -> Any:
        async with self._http.patch(self._url + path, json=body) as response:
            assert response.status == status, await response.text()
            return await response.json()


@pytest.fixture
def control(http: aiohttp.ClientSession, host: SimulatedHost) -> Control:
    return Control(http, host)


async def test_the_gpu_is_one_card_that_says_it_is_simulated(control: Control) -> None:
    (card,) = await control.get("/gpu")

    assert set(card) == {
        "index", "uuid", "name", "memory_total_mb", "memory_used_mb", "memory_free_mb", "utilization_percent",
        "temperature_c", "power_draw_w", "power_limit_w", "fan_percent", "thermal_slowdown", "processes",
        "simulated",
    }  # fmt: skip
    assert (card["index"], card["uuid"], card["simulated"]) == (0, "GPU-simulated-0", True)
    assert "imulated" in card["name"]
    assert card["memory_used_mb"] + card["memory_free_mb"] == card["memory_total_mb"] == 24 * 1024
    assert card["processes"] == [
        {"pid": None, "name": "alpha", "memory_mb": 2048.0},
        {"pid": None, "name": "org/beta", "memory_mb": 6144.0},
    ]


async def test_memory_can_be_pinned_as_a_share_or_in_mb_and_let_go(control: Control) -> None:
    (usual,) = await control.get("/gpu")
    (share,) = await control.patch("/gpu", {"utilization": 0.9})
    (fixed,) = await control.patch("/gpu", {"memory_used_mb": 1000})
    (freed,) = await control.patch("/gpu", {"memory_used_mb": None})

    assert share["memory_used_mb"] == pytest.approx(0.9 * 24 * 1024, abs=0.1)
    assert fixed["memory_used_mb"] == 1000
    assert freed["memory_used_mb"] == usual["memory_used_mb"] == (0.6 + 2 + 6) * 1024


async def test_foreign_memory_comes_and_goes(control: Control) -> None:
    (gaming,) = await control.patch("/gpu", {"foreign_mb": 8000})
    (usual,) = await control.patch("/gpu", {"foreign_mb": None})

    assert gaming["memory_used_mb"] == 8000 + 8 * 1024
    assert usual["memory_used_mb"] == 0.6 * 1024 + 8 * 1024


async def test_the_temperature_can_be_pinned_and_let_go(control: Control) -> None:
    (hot,) = await control.patch("/gpu", {"temperature_c": 94.5})
    (usual,) = await control.patch("/gpu", {"temperature_c": None})

    assert (hot["temperature_c"], hot["thermal_slowdown"], hot["fan_percent"]) == (94.5, True, 100.0)
    assert usual["temperature_c"] < 60
    assert usual["thermal_slowdown"] is False


async def test_running_requests_show_on_the_card(
    control: Control, host: SimulatedHost, client: HttpClient
) -> None:
    (idle,) = await control.get("/gpu")
    body: dict[str, Any] = {"prompt": "the queue", "max_tokens": 4000}
    task = asyncio.create_task(complete(client, call(host.backends["alpha"].url, body)))
    await wait_until(lambda: host.backends["alpha"].running == 1, "the request runs")
    (busy,) = await control.get("/gpu")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert (idle["utilization_percent"], busy["utilization_percent"]) == (0.0, 50.0)
    assert busy["memory_used_mb"] > idle["memory_used_mb"]
    assert busy["power_draw_w"] > idle["power_draw_w"]


async def test_a_model_can_be_unloaded_and_loaded_again(
    control: Control, host: SimulatedHost, http: aiohttp.ClientSession
) -> None:
    url = host.backends["alpha"].url
    gone = await control.patch("/models/alpha", {"residence": "unloaded"})
    unloaded = await probe(http, url, BackendType.LLAMA_CPP, timeout_s=10.0)
    (card,) = await control.get("/gpu")
    back = await control.patch("/models/alpha", {"residence": "resident"})
    loaded = await probe(http, url, BackendType.LLAMA_CPP, timeout_s=10.0)

    assert (gone["residence"], unloaded.residence) == ("unloaded", Residence.UNLOADED)
    assert [process["name"] for process in card["processes"]] == ["org/beta"]
    assert (back["residence"], loaded.residence) == ("resident", Residence.RESIDENT)
    assert back["port"] == gone["port"]


async def test_unloading_cuts_off_what_runs(client: HttpClient) -> None:
    async with simulated() as model:
        begun = asyncio.Event()
        body: dict[str, Any] = {"prompt": "the queue", "max_tokens": 4000}
        task = asyncio.create_task(complete(client, call(model.url, body), begun.set))
        await begun.wait()

        await model.unload()

        (result,) = await asyncio.gather(task, return_exceptions=True)
    assert type(result).__name__ == "Interrupted"


async def test_a_sleeping_model_holds_no_memory(control: Control) -> None:
    asleep = await control.patch("/models/alpha", {"residence": "sleeping"})
    (card,) = await control.get("/gpu")
    awake = await control.patch("/models/alpha", {"residence": "resident"})

    assert (asleep["residence"], awake["residence"]) == ("sleeping", "resident")
    assert [process["name"] for process in card["processes"]] == ["org/beta"]


async def test_speed_and_load_time_can_be_changed(control: Control) -> None:
    changed = await control.patch("/models/org/beta", {"tokens_per_second": 5, "load_s": 30})
    await control.patch("/models/org/beta", {"residence": "unloaded"})
    loading = await control.patch("/models/org/beta", {"residence": "resident"})

    assert (changed["tokens_per_second"], changed["load_s"]) == (5, 30)
    assert loading["residence"] == "loading"


async def test_faults_are_set_shown_and_healed_in_two_ways(control: Control, host: SimulatedHost) -> None:
    seen = []
    for heal in ({"kind": None}, None):
        for fault in ({"kind": "status", "status": 502}, heal):
            answer = await control.patch("/models/alpha", {"fault": fault})
            seen.append((answer["fault"], host.backends["alpha"].fault is not None))

    assert seen == [({"kind": "status", "status": 502}, True), (None, False)] * 2


async def test_counters_tell_what_happened(control: Control, host: SimulatedHost, client: HttpClient) -> None:
    url = host.backends["alpha"].url
    await asyncio.gather(*(complete(client, call(url)) for _ in range(5)))

    alpha, beta = await control.get("/models")
    assert (alpha["received"], alpha["served"], alpha["peak_running"]) == (5, 5, 2)
    assert (alpha["simulated"], beta["served"]) == (True, 0)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/gpu", {"memory": 1}, 422, "memory_used_mb"),
        ("/gpu", {"utilization": 1.5}, 422, "utilization"),
        ("/gpu", {"utilization": 0.5, "memory_used_mb": 1}, 422, "not both"),
        ("/gpu", [], 422, "temperature_c"),
        ("/models/gamma", {}, 404, "org/beta"),
        ("/models/alpha", {"speed": 1}, 422, "tokens_per_second"),
        ("/models/alpha", {"tokens_per_second": 0}, 422, "tokens_per_second"),
        ("/models/alpha", {"residence": "failed"}, 422, "unloaded"),
        ("/models/alpha", {"fault": {"kind": "explode"}}, 422, "die_mid_stream"),
        ("/models/alpha", {"fault": {"kind": "status", "code": 500}}, 422, "fault.code"),
        ("/models/alpha", {"fault": {"kind": "refuse", "times": 2}}, 422, "can't be counted"),
        ("/nowhere", {}, 404, "PATCH /gpu"),
    ],
)
async def test_what_is_not_understood_is_refused_naming_what_is_known(
    control: Control, path: str, body: Any, status: int, words: str
) -> None:
    answer = await control.patch(path, body, status)

    assert words in str(answer["error"])
