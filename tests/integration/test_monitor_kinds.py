"""The monitor finds out what kind of server a model is on, where nobody said it and where somebody erred."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest

from services.monitor.host import HostView
from services.monitor.ownership import Server
from services.simulator.host import SimulatedHost
from shared.config import Settings, SimulatorSettings
from shared.registry import Registration
from shared.snapshots import snapshot_of
from shared.states import BackendType
from tests.kit.backends import registration, simulated
from tests.kit.monitor import GpuEndpoint, log_lines, monitor_settings, running_monitor
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import Store
from tests.kit.vllm_backends import simulated_vllm
from tests.kit.waiting import wait_until


@pytest.fixture
async def settings(redis_url: str) -> AsyncIterator[Settings]:
    async with GpuEndpoint() as gpus:
        yield monitor_settings(redis_url, gpus.port)


async def probed(store: Store, name: str, **wanted: str) -> Mapping[str, str]:
    async def reached() -> Mapping[str, str] | None:
        found = await store.model(name)
        return found if "probe_ms" in found and wanted.items() <= found.items() else None

    return await wait_until(reached, f"{name} was probed and says {wanted}")


async def kind_for_routing(store: Store, settings: Settings, name: str) -> BackendType:
    return snapshot_of(await store.fleet.view(heads=0), settings).models[name].backend


async def test_a_name_and_a_url_are_enough_for_either_kind(settings: Settings, store: Store) -> None:
    async with simulated("small") as llama, simulated_vllm("org/large") as vllm:
        entries = [Registration(name="one", url=llama.url), Registration(name="two", url=f"{vllm.url}/v1")]
        await store.fleet.register(entries)
        assert await kind_for_routing(store, settings, "two") is BackendType.LLAMA_CPP
        async with running_monitor(settings):
            one = await probed(store, "one", residence="resident", backend="llama_cpp")
            two = await probed(store, "two", residence="resident", backend="vllm")
        assert (one["upstream_name"], two["upstream_name"]) == ("small", "org/large")
        assert two["context_tokens"] == str(vllm.model.context_tokens)
        assert await kind_for_routing(store, settings, "one") is BackendType.LLAMA_CPP
        assert await kind_for_routing(store, settings, "two") is BackendType.VLLM
        assert await store.fleet.kinds(["one", "two", "three"]) == {"one": "llama_cpp", "two": "vllm"}


async def test_the_kind_that_was_said_wins_and_a_contradiction_is_said_once(
    settings: Settings, store: Store
) -> None:
    async with simulated_vllm("large") as vllm:
        await store.fleet.register([Registration(name="wrong", url=vllm.url, backend=BackendType.LLAMA_CPP)])
        with log_lines() as lines:
            async with running_monitor(settings):
                seq = int((await probed(store, "wrong", residence="failed"))["probe_seq"])

                async def often() -> bool:
                    return int((await store.model("wrong"))["probe_seq"]) >= seq + 5

                await wait_until(often, "five more probes")
        assert await kind_for_routing(store, settings, "wrong") is BackendType.LLAMA_CPP
    (told,) = [line for line in lines if "is registered as" in line]
    assert told == (
        f"model wrong is registered as llama_cpp, but what answers at {vllm.url} says that it is vllm: "
        "correct its 'backend', or leave it out; until then it is treated as llama_cpp"
    )


async def test_another_kind_of_server_at_the_same_address_is_noticed(
    settings: Settings, store: Store
) -> None:
    port, chosen = free_port(), SimulatorSettings(load_s=0, port=free_port())
    entry = Registration(name="here", url=f"http://127.0.0.1:{port}")
    await store.fleet.register([entry])
    async with running_monitor(settings):
        await probed(store, "here", residence="unloaded")
        assert "backend" not in await store.model("here")
        async with SimulatedHost([registration("small", port=port)], chosen):
            await probed(store, "here", residence="resident", backend="llama_cpp")
        # What it was is not forgotten while nobody answers.
        await probed(store, "here", residence="unloaded", backend="llama_cpp")
        async with SimulatedHost([registration("big", port=port, backend=BackendType.VLLM)], chosen):
            await probed(store, "here", residence="resident", backend="vllm", upstream_name="big")


async def test_a_model_that_is_registered_for_another_server_loses_its_kind(
    settings: Settings, store: Store
) -> None:
    async with simulated_vllm("large") as vllm:
        await store.fleet.register([Registration(name="moves", url=vllm.url)])
        async with running_monitor(settings):
            await probed(store, "moves", backend="vllm")
        await store.fleet.register([Registration(name="moves", url=f"http://127.0.0.1:{free_port()}")])
        assert await kind_for_routing(store, settings, "moves") is BackendType.LLAMA_CPP


def test_a_pool_counts_as_one_once_its_kind_is_known() -> None:
    host = HostView("host", "127.0.0.1")
    entry = Registration(name="pool", port=8000, vram_gb=20)
    host.saw_gpus(())
    host.saw_models([entry])
    assert host.servers == {Server(8000, vllm=False)}
    host.saw_kind("pool", BackendType.VLLM)
    assert host.servers == {Server(8000, vllm=True)}
    host.saw_models([entry.model_copy(update={"port": 8001})])
    assert host.servers == {Server(8001, vllm=False)}
