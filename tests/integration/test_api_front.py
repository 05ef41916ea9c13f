"""GET /readyz, /healthz, / and the OpenAPI document."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest

from shared.store.fleet import BackendSample, GpuSample
from tests.kit.api_fixture import ApiClient, api_config, serving, state_on
from tests.kit.store_fixture import Store


async def test_ready_names_what_is_missing_until_nothing_is(api: ApiClient, api_store: Store) -> None:
    nothing_there = await api.get("/readyz")
    await api_store.fleet.publish_gpu(GpuSample("host/0", "b1", 1, 0, {"source": "nvml"}, {}), ttl_s=30)
    no_router = await api.get("/readyz")
    await api_store.fleet.heartbeat("router-a", "b1", {"service": "router"})
    ready = await api.get("/readyz")

    assert [reason.partition(":")[0] for reason in nothing_there.body["missing"]] == ["router", "gpu sample"]
    assert (nothing_there.status, no_router.status) == (503, 503)
    assert [reason.partition(":")[0] for reason in no_router.body["missing"]] == ["router"]
    assert (ready.status, ready.body) == (200, {"status": "ready", "missing": []})


@pytest.mark.parametrize(
    ("source", "probed", "status"),
    [("none", False, 200), ("auto", True, 200), ("auto", False, 503), ("nvml", True, 503)],
)
async def test_a_host_without_gpu_readings_can_be_ready(
    store: Store, tmp_path: Path, source: str, probed: bool, status: int
) -> None:
    """Models that are not simulated, on a host without a driver: ``auto`` comes to none there."""
    models = [{"name": "real", "port": 1}]
    config = {**api_config(store.url, tmp_path), "models": models, "gpu": {"source": source}}
    state = state_on(store, config)
    await state.registry.publish()
    for service in ("router", "monitor"):
        await store.fleet.heartbeat(f"{service}-a", "b1", {"service": service})
    if probed:
        await store.fleet.publish_backend(BackendSample("real", "b1", 1, 0, {"residence": "resident"}))

    async with serving(state) as url, aiohttp.ClientSession() as session:
        answer = await ApiClient(session, url).get("/readyz")

    assert answer.status == status


async def test_the_front_door_and_the_process_answer(api: ApiClient) -> None:
    welcome, health = await api.get("/"), await api.get("/healthz")

    assert welcome.body["docs"] == "/docs"
    assert health.body["status"] == "ok"
    assert (await api.get("/docs")).status == 200


async def test_every_reference_of_the_openapi_document_leads_somewhere(api: ApiClient) -> None:
    document = await api.document()

    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert names == document["components"]["schemas"].keys()
    assert {"Job", "JobRequest", "Problem", "FleetStatus"} <= names


async def test_every_call_that_the_front_door_names_is_documented(api: ApiClient) -> None:
    documented = {
        f"{method.upper()} {path}".replace("{job_id}", "{id}")
        for path, calls in (await api.document())["paths"].items()
        for method in calls
    }

    assert (await api.get("/")).body["calls"].keys() <= documented
