"""Models of one llama.cpp in router mode, through the monitor: each as it stands, none ever loaded by it."""

from __future__ import annotations

from shared.registry import Registration
from tests.kit.llama_router import LlamaRouter
from tests.kit.monitor import GpuEndpoint, monitor_settings, running_monitor
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until


async def says(store: Store, **residences: str) -> None:
    """Wait until the models of these names are published with these residences."""

    async def reached() -> bool:
        found = [(await store.model(name)).get("residence") for name in residences]
        return found == list(residences.values())

    await wait_until(reached, f"residences {residences}")


async def test_every_model_of_a_router_has_the_residence_that_the_router_tells(
    redis_url: str, store: Store
) -> None:
    async with GpuEndpoint() as gpus, LlamaRouter(tiny="loaded", small="unloaded") as router:
        settings = monitor_settings(redis_url, gpus.port)
        await store.fleet.register(
            [
                Registration(name="mine", url=router.url, upstream_name="tiny"),
                Registration(name="small", url=f"{router.url}/v1"),
                Registration(name="none", url=router.url, upstream_name="elsewhere"),
            ]
        )
        async with running_monitor(settings):
            await says(store, mine="resident", small="unloaded", none="failed")
            mine, none = await store.model("mine"), await store.model("none")
            router.models.update(tiny="sleeping", small="loading")
            await says(store, mine="sleeping", small="loading")
            router.models.update(tiny="unloaded", small="loaded")
            router.running = 1
            await says(store, mine="unloaded", small="resident")

    assert (mine["upstream_name"], mine["slots"], mine["context_tokens"]) == ("tiny", "3", "2048")
    assert "elsewhere" in none["probe_error"]
    assert router.loaded_by == []
