"""Probes of backends: real servers, through the monitor, into a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.simulator.host import SimulatedHost
from shared.config import Settings, SimulatorSettings
from shared.registry import Registration
from shared.states import BackendType
from shared.store.records import StreamEntry
from shared.store.streams import read_range
from tests.kit.faulty_server import faulty_server
from tests.kit.llama_server import LlamaServer
from tests.kit.monitor import GPU, GpuEndpoint, gpu, log_lines, monitor_settings, running_monitor
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

SIMULATED = SimulatorSettings(load_s=0, foreign_gb=1.0)
ALPHA = Registration(name="alpha", vram_gb=2.0, port=1, slots=3, context_tokens=4096, simulated=True)
POOL = Registration(name="pool", backend=BackendType.VLLM, vram_gb=20.0, port=1, slots=8, simulated=True)


@pytest.fixture
async def gpus() -> AsyncIterator[GpuEndpoint]:
    async with GpuEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def settings(redis_url: str, gpus: GpuEndpoint) -> Settings:
    return monitor_settings(redis_url, gpus.port)


async def probed(store: Store, name: str, **wanted: str | None) -> Mapping[str, str]:
    """The model's hash once it was probed and says this (None: the field is absent)."""

    async def reached() -> Mapping[str, str] | None:
        found = await store.model(name)
        says = all(found.get(field) == value for field, value in wanted.items())
        return found if "probe_ms" in found and says else None

    return await wait_until(reached, f"{name} was probed and says {wanted}")


async def backend_samples(store: Store) -> list[StreamEntry]:
    return await read_range(store.redis, store.keys.backend_samples, count=10_000)


async def probed_again(store: Store, name: str, times: int = 3) -> None:
    first = int((await probed(store, name))["probe_seq"])

    async def more() -> bool:
        entries = [entry for entry in await backend_samples(store) if entry.fields["model"] == name]
        return len(entries) >= times and int((await store.model(name))["probe_seq"]) >= first + times

    await wait_until(more, f"{times} more probes of {name}")


def refused(name: str, **changes: Any) -> Registration:
    """A model whose server does not run."""
    return Registration(name=name, **{"port": free_port(), **changes})


async def test_a_probe_lands_in_the_stream_and_in_the_hash_of_its_model(
    settings: Settings, store: Store
) -> None:
    async with SimulatedHost([ALPHA], SIMULATED, free_ports=True) as simulated:
        await store.fleet.register(simulated.registrations)
        async with running_monitor(settings):
            model = await probed(store, "alpha", residence="resident", backend_running="0")
            entry = (await backend_samples(store))[0]

    expected = {
        "residence": "resident",
        "backend_running": "0",
        "backend_waiting": "0",
        "slots": "3",
        "context_tokens": "4096",
        "kv_use": "0",
        "upstream_name": "alpha",
        "host": "host",
        "gpu": GPU,
        "simulated": "1",
    }
    assert {name: model.get(name) for name in expected} == expected
    assert {name: entry.fields.get(name) for name in expected} == expected
    assert (entry.fields["type"], entry.fields["model"]) == ("backend.sample", "alpha")
    assert float(model["probe_latency_ms"]) > 0
    assert "probe_error" not in model


async def test_a_server_that_goes_away_is_unloaded_and_what_it_said_is_dropped(
    settings: Settings, store: Store
) -> None:
    with log_lines() as lines:
        async with SimulatedHost([ALPHA], SIMULATED, free_ports=True) as simulated:
            await store.fleet.register(simulated.registrations)
            async with running_monitor(settings):
                await probed(store, "alpha", residence="resident")
                await simulated.backends["alpha"].unload()
                gone = await probed(store, "alpha", residence="unloaded")
                await simulated.backends["alpha"].load()
                await probed(store, "alpha", residence="resident", slots="3", probe_error=None)
    assert gone.keys().isdisjoint({"slots", "context_tokens", "kv_use", "backend_running", "upstream_name"})
    assert "refused" in gone["probe_error"]
    changes = [line for line in lines if line.startswith("backend alpha")]
    assert [line.split(": ")[0] for line in changes] == [
        "backend alpha (llama_cpp, simulated) unknown -> resident",
        "backend alpha (llama_cpp) resident -> unloaded",
        "backend alpha (llama_cpp, simulated) unloaded -> resident",
    ]


async def test_a_hanging_backend_delays_neither_the_others_nor_the_gpus(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    async with (
        faulty_server(end="hang") as hanging,
        SimulatedHost([ALPHA], SIMULATED, free_ports=True) as simulated,
    ):
        stuck = Registration(name="stuck", url=hanging.url)
        await store.fleet.register([stuck, *simulated.registrations])
        async with running_monitor(settings):
            await wait_until(lambda: hanging.requests, "the hanging backend was asked")
            reads = gpus.reads
            failed = await probed(store, "stuck", residence="failed")
            meanwhile = gpus.reads - reads
            probes = [entry.fields["model"] for entry in await backend_samples(store)]
    assert "backend_timeout" in failed["probe_error"]
    # Two seconds, ten times a second: so few only on a machine that is very busy itself.
    assert meanwhile >= 4
    assert probes.index("stuck") >= 4


async def test_the_registry_is_followed_while_running(settings: Settings, store: Store) -> None:
    async with SimulatedHost([ALPHA], SIMULATED, free_ports=True) as simulated:
        (alpha,) = simulated.registrations
        await store.fleet.register([refused("alpha")])
        async with running_monitor(settings):
            await probed(store, "alpha", residence="unloaded")
            await store.fleet.register([alpha, refused("later")])
            await probed(store, "alpha", residence="resident")
            await probed(store, "later", residence="unloaded")
            await store.redis.hdel(store.keys.models, "later")

            async def settled() -> bool:
                before = (await store.model("later"))["probe_seq"]
                await probed_again(store, "alpha", times=3)
                return (await store.model("later"))["probe_seq"] == before

            await wait_until(settled, "the removed model is no longer probed")


async def test_models_of_other_hosts_are_left_to_their_monitors(settings: Settings, store: Store) -> None:
    await store.fleet.register([refused("ours", host="host"), refused("theirs", host="other")])
    async with running_monitor(settings):
        await probed_again(store, "ours")
    assert "probe_ms" not in await store.model("theirs")


async def test_with_several_gpus_a_model_is_where_its_registration_says(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    gpus.cards = [gpu(0), gpu(1)]
    await store.fleet.register(
        [
            refused("by-uuid", gpu="GPU-test-1"),
            refused("by-index", gpu=0),
            refused("unsaid"),
            refused("wrong", gpu="GPU-nowhere"),
        ]
    )
    with log_lines() as lines:
        async with running_monitor(settings):
            await probed(store, "by-uuid", gpu="host/1")
            await probed(store, "by-index", gpu="host/0")
            await probed(store, "unsaid", gpu=None)
            await probed(store, "wrong", gpu=None)
            await probed_again(store, "wrong")
    assert len([line for line in lines if "GPU-nowhere" in line]) == 1


async def test_a_monitor_that_cannot_read_its_gpus_yet_keeps_what_is_known_of_a_models_gpu(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    """Else a restart while the driver is gone would take a model out from behind a closed gate."""
    await store.fleet.register([refused("alpha")])
    async with running_monitor(settings):
        await probed(store, "alpha", gpu=GPU)
    gpus.cards = [{"index": 0}]
    async with running_monitor(settings):
        await probed_again(store, "alpha")
        await probed(store, "alpha", gpu=GPU)


async def test_a_vllm_pool_is_a_partition_and_no_pressure(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    """20 of 24 GB are the pool; of the 4 GB beside it 1 GB is used. Asleep, the pool is gone."""
    async with SimulatedHost([POOL], SIMULATED, free_ports=True) as simulated:
        gpus.cards = [gpu(use=21 / 24)]
        await store.fleet.register(simulated.registrations)
        async with running_monitor(settings):
            await wait_for_level(store, pressure="low", effective_utilization="0.25")
            await simulated.backends["pool"].unload()
            await wait_for_level(store, pressure="critical", effective_utilization="0.875")


async def test_a_restart_beside_a_vllm_pool_never_says_critical(
    settings: Settings, gpus: GpuEndpoint, store: Store
) -> None:
    async with SimulatedHost([POOL], SIMULATED, free_ports=True) as simulated:
        gpus.cards = [gpu(use=21 / 24)]
        await store.fleet.register(simulated.registrations)
        for _ in range(3):
            async with running_monitor(settings):
                await probed_again(store, "pool", times=2)
        entries = await read_range(store.redis, store.keys.gpu_samples, count=1000)
    assert {entry.fields["pressure"] for entry in entries} <= {"unknown", "low"}


async def test_a_vllm_pool_of_unknown_size_makes_the_pressure_unknown_and_says_so(
    settings: Settings, store: Store
) -> None:
    unsized = POOL.model_copy(update={"vram_gb": None})
    async with SimulatedHost([unsized], SIMULATED, free_ports=True) as simulated:
        await store.fleet.register(simulated.registrations)
        with log_lines() as lines:
            async with running_monitor(settings):
                await probed(store, "pool", residence="resident")
                await wait_until(lambda: any("vram_gb" in line for line in lines), "the remedy is said")
                level = await store.fleet.level(GPU)
    assert (level["pressure"], level["thermal"]) == ("unknown", "normal")


async def wait_for_level(store: Store, **wanted: str) -> None:
    async def reached() -> bool:
        return wanted.items() <= (await store.fleet.level(GPU)).items()

    await wait_until(reached, f"levels {wanted}")


@pytest.mark.llamacpp
async def test_a_real_llama_cpp_is_probed_with_the_key_that_its_registration_names(
    settings: Settings, store: Store, small_model: Path
) -> None:
    async with LlamaServer(small_model, alias="small", api_key="secret") as server:
        await store.fleet.register(
            [
                Registration(name="keyed", url=server.url, api_key_env="SMALL_KEY"),
                Registration(name="unset", url=server.url, api_key_env="NOWHERE_KEY"),
            ]
        )
        with log_lines() as lines:
            async with running_monitor(settings, {"SMALL_KEY": "secret"}):
                keyed = await probed(store, "keyed", residence="resident", slots="2")
                unset = await probed(store, "unset", residence="failed")
    assert (keyed["context_tokens"], keyed["upstream_name"]) == ("4096", "small")
    assert "simulated" not in keyed
    assert "probe_error" in unset
    assert any("NOWHERE_KEY" in line for line in lines)
    assert not any("secret" in line for line in lines)
