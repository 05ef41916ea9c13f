"""Readings of the simulator's control endpoint, and the choice of a source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from services.simulator.host import SimulatedHost
from shared.config import SimulatorSettings, parse
from shared.gpu.choice import choose_source
from shared.gpu.simulated import SimulatedSource
from shared.gpu.source import Cause, GpuProcess, GpuReading, GpuUnavailable
from shared.registry import Registration
from tests.kit.faulty_server import answer, faulty_server
from tests.kit.monitor import GpuEndpoint, gpu
from tests.kit.redis_fixture import free_port


@pytest.fixture
async def endpoint() -> AsyncIterator[GpuEndpoint]:
    async with GpuEndpoint() as server:
        yield server


def source_at(http: aiohttp.ClientSession, port: int) -> SimulatedSource:
    return SimulatedSource(http, f"http://127.0.0.1:{port}")


async def test_a_simulated_card_is_read_like_a_real_one(
    http: aiohttp.ClientSession, endpoint: GpuEndpoint
) -> None:
    process = {"pid": None, "name": "alpha", "memory_mb": 2048.0}
    endpoint.cards = [gpu(use=0.25, processes=[process], something_new=1), gpu(1)]

    first, second = await source_at(http, endpoint.port).read()

    assert first == GpuReading(
        index=0,
        uuid="GPU-test-0",
        name="Test GPU",
        memory_total_mb=24576.0,
        memory_free_mb=18432.0,
        gpu_utilization_percent=12.5,
        temperature_c=50.0,
        power_draw_w=120.0,
        power_limit_w=350.0,
        fan_percent=40.0,
        thermal_slowdown=False,
        processes=(GpuProcess(None, 2048.0, "alpha"),),
    )
    assert first.memory_used_mb == 6144.0
    assert (second.index, second.uuid) == (1, "GPU-test-1")


async def test_the_real_simulator_is_read(http: aiohttp.ClientSession) -> None:
    model = Registration(name="alpha", vram_gb=2.0, port=1, simulated=True)
    settings = SimulatorSettings(load_s=0, memory_total_gb=10.0, foreign_gb=0.5)
    async with SimulatedHost([model], settings, free_ports=True) as simulator:
        (card,) = await SimulatedSource(http, simulator.control_url).read()
    assert (card.memory_total_mb, card.memory_used_mb) == (10240.0, 2560.0)
    assert card.processes == (GpuProcess(None, 2048.0, "alpha"),)
    assert None not in (card.temperature_c, card.power_draw_w, card.gpu_utilization_percent)


async def test_what_the_endpoint_leaves_out_is_unknown(
    http: aiohttp.ClientSession, endpoint: GpuEndpoint
) -> None:
    endpoint.cards = [{"index": 3, "simulated": True}]
    assert await source_at(http, endpoint.port).read() == [GpuReading(index=3)]


@pytest.mark.parametrize(
    "card",
    [
        {"index": 0},
        {"index": 0, "simulated": False},
        {"index": -1, "simulated": True},
        {"simulated": True},
        {"index": 0, "simulated": True, "temperature_c": "hot"},
    ],
)
async def test_what_is_no_simulated_card_is_unreadable(
    http: aiohttp.ClientSession, endpoint: GpuEndpoint, card: dict[str, Any]
) -> None:
    endpoint.cards = [card]
    with pytest.raises(GpuUnavailable) as caught:
        await source_at(http, endpoint.port).read()
    assert caught.value.cause is Cause.UNREADABLE


@pytest.mark.parametrize(
    "body",
    [
        answer("200 OK", b"<html>hello</html>"),
        answer("200 OK", b'[{"index": 0, "simulated": true, "temperature_c": NaN}]'),
        answer("200 OK", b'[{"index": 0, "simulated": true, "memory_free_mb": 1e999}]'),
        answer("404 Not Found", b"[]"),
        answer("302 Found", b"", Location="http://127.0.0.1:1/gpu"),
    ],
)
async def test_another_programs_answer_is_unreadable(http: aiohttp.ClientSession, body: bytes) -> None:
    async with faulty_server(body) as server:
        with pytest.raises(GpuUnavailable) as caught:
            await SimulatedSource(http, server.url).read()
    assert caught.value.cause is Cause.UNREADABLE


async def test_a_simulator_that_does_not_run_does_not_answer(http: aiohttp.ClientSession) -> None:
    with pytest.raises(GpuUnavailable) as caught:
        await source_at(http, free_port()).read()
    assert caught.value.cause is Cause.NOT_ANSWERING


async def test_a_broken_off_answer_is_no_answer(http: aiohttp.ClientSession) -> None:
    async with faulty_server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", end="reset") as server:
        with pytest.raises(GpuUnavailable) as caught:
            await SimulatedSource(http, server.url).read()
    assert caught.value.cause is Cause.NOT_ANSWERING


REAL = {"name": "real", "port": 8080}
SIMULATED = {"name": "made-up", "port": 8080, "simulated": True}


@pytest.mark.parametrize(
    ("wanted", "models", "chosen"),
    [
        ("auto", [SIMULATED], "simulated"),
        ("auto", [SIMULATED, {**REAL, "port": 8081}], "simulated"),
        ("simulated", [REAL], "simulated"),
        ("nvml", [SIMULATED], "nvml"),
        ("none", [SIMULATED], None),
    ],
)
async def test_the_source_follows_the_setting_and_auto_the_models(
    http: aiohttp.ClientSession, wanted: str, models: list[dict[str, object]], chosen: str | None
) -> None:
    source = await choose_source(parse({"gpu": {"source": wanted}, "models": models}, "test"), http)
    assert (source.name if source else None) == chosen
    assert source is None or source.simulated == (chosen == "simulated")
