"""vLLM pools around a start, cards of one's own reserve, and what a sample says of processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from services.simulator.host import SimulatedHost
from shared.config import Settings, SimulatorSettings
from shared.registry import Registration
from shared.states import BackendType
from tests.kit.configs import free_ports
from tests.kit.monitor import (
    GPU,
    GpuEndpoint,
    gpu,
    latest,
    level,
    log_lines,
    monitor_settings,
    read_again,
    running_monitor,
    samples,
)
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

POOL = Registration(name="pool", backend=BackendType.VLLM, vram_gb=20.0, port=1, slots=8, simulated=True)


@pytest.fixture
async def gpus() -> AsyncIterator[GpuEndpoint]:
    async with GpuEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def settings(redis_url: str, gpus: GpuEndpoint) -> Settings:
    return monitor_settings(redis_url, gpus.port)


async def pressures(store: Store) -> set[str]:
    """All that were published; a sample that was overtaken says none."""
    return {entry.fields["pressure"] for entry in await samples(store) if "pressure" in entry.fields}


async def test_a_first_boot_beside_a_vllm_pool_never_says_critical(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    """The monitor comes up long before the api registers the models of the file that both were given."""
    gpus.cards = [gpu(use=21 / 24)]
    async with SimulatedHost([POOL], SimulatorSettings(load_s=0), free_ports=True) as simulated:
        (entry,) = simulated.registrations
        async with running_monitor(settings.model_copy(update={"models": (entry,)})):
            await read_again(gpus, store, times=20)
            assert await pressures(store) == {"unknown"}
            assert (await latest(store))["thermal"] == "normal"
            await store.fleet.register([entry])
            await level(store, pressure="low", effective_utilization="0.25")
    assert await pressures(store) == {"unknown", "low"}


async def test_a_first_boot_without_a_vllm_has_levels_at_once(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    gpus.cards = [gpu(use=21 / 24)]
    entry = Registration(name="alpha", vram_gb=2.0, port=free_ports(1)[0])
    async with running_monitor(settings.model_copy(update={"models": (entry,)})):
        await level(store, pressure="critical")
    assert await store.model("alpha") == {}


@contextmanager
def vllm_that_loads(port: int) -> Iterator[int]:
    """The pid of a process with vLLM's command line whose port is shut."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "vllm.entrypoints.openai.api_server"]
    with subprocess.Popen([*command, "--port", str(port)], stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_vllm_that_loads_is_said_and_is_no_pressure(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    (port,) = free_ports(1)
    entry = Registration(name="pool", backend=BackendType.VLLM, vram_gb=20.0, port=port)
    await store.fleet.register([entry])
    with vllm_that_loads(port) as pid:
        for loaded_mb in (8192.0, 20480.0):
            used_mb = 1024.0 + loaded_mb
            process = {"pid": pid, "name": None, "memory_mb": loaded_mb}
            gpus.cards = [gpu(memory_free_mb=24576.0 - used_mb, processes=[process])]
            async with running_monitor(settings):

                async def loading(size: float = loaded_mb) -> bool:
                    model = await store.model("pool")
                    return (model.get("residence"), model.get("memory_mb")) == ("loading", f"{size:g}")

                await wait_until(loading, "it is seen loading")
                await level(store, pressure="low")
        assert await pressures(store) <= {"unknown", "low"}


async def test_a_cards_own_reserve_is_told_with_its_samples(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    gpus.cards = [gpu(0), gpu(1), gpu(2)]
    overrides = monitor_settings(settings.redis.effective_url, gpus.port).model_validate(
        {"gpus": [{"id": "gpu-TEST-1", "reserve_gb": 1.0}, {"id": 2, "reserve_gb": 0}]}
    )
    async with running_monitor(settings.model_copy(update={"gpus": overrides.gpus})):
        for index in range(3):
            await level(store, f"host/{index}", pressure="low")
        reserves = [(await latest(store, f"host/{index}"))["reserve_mb"] for index in range(3)]
    assert reserves == ["3072", "1024", "0"]


async def test_a_sample_names_processes_with_their_memory_and_unknown_sizes_as_such(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    gpus.cards = [
        gpu(
            processes=[{"pid": 42, "memory_mb": 512.5}, {"pid": 43, "memory_mb": None}, {"name": "alpha"}],
            power_capped=True,
        ),
        gpu(1, processes=None),
    ]
    async with running_monitor(settings):
        await level(store, "host/1", pressure="low")
        first, second = await latest(store), await latest(store, "host/1")
    assert (first["processes"], first["power_capped"]) == ("42:512.5,43:?,alpha:?", "1")
    assert second.keys().isdisjoint({"processes", "power_capped"})


async def test_another_card_under_the_same_index_does_not_inherit_its_levels(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    """0.83 would stay critical for the card that was."""
    gpus.cards = [gpu(use=0.86)]
    async with running_monitor(settings):
        await level(store, pressure="critical", uuid="GPU-test-0")
    gpus.cards = [gpu(use=0.83, uuid="GPU-another")]
    with log_lines() as lines:
        async with running_monitor(settings):
            await level(store, pressure="high", uuid="GPU-another")
    assert any(f"GPU {GPU} is another card" in line for line in lines)
