"""GET /v1/gpu/status, with the test in the monitor's place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from services.api.status_bodies import FleetStatus
from shared.store.fleet import BackendSample, GpuSample
from tests.kit.api_fixture import ApiClient
from tests.kit.store_fixture import Store

_SPECIFICATION = {
    "id": 0,
    "memory_used_gb": 12.06,
    "memory_total_gb": 24.0,
    "memory_available_gb": 11.94,
    "utilization_percent": 50.25,
    "temperature_c": 49.0,
    "power_draw_w": 150.0,
    "is_throttled": False,
}
_READING = {
    "name": "NVIDIA GeForce RTX 3090",
    "uuid": "GPU-1",
    "memory_total_mb": "24576",
    "memory_used_mb": "12349.44",
    "memory_free_mb": "12226.56",
    "gpu_utilization_percent": "37",
    "temperature_c": "49",
    "power_draw_w": "150",
    "thermal_slowdown": "0",
    "source": "nvml",
    "interval_ms": "1000",
}
_LEVEL = {"pressure": "normal", "full": "0", "thermal": "normal", "effective_utilization": "0.5025"}


async def test_the_status_is_the_specifications_example(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store)
    await _probe(api_store)

    status = await _status(api)

    gpu, model = status["gpu"], status["models"]["beta"]
    assert {name: gpu[name] for name in _SPECIFICATION} == _SPECIFICATION
    shown = ("vram_gb", "backend", "avg_latency_ms", "queue_size", "failure_count")
    assert {name: model[name] for name in shown} == {
        "vram_gb": 6.5,
        "backend": "llama_cpp",
        "avg_latency_ms": None,
        "queue_size": 0,
        "failure_count": 0,
    }
    FleetStatus.model_validate(status)


async def test_a_gpu_shows_what_its_levels_stand_on(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store)

    gpu = (await _status(api))["gpu"]

    expected = {
        "gpu_utilization_percent": 37.0,
        "effective_utilization_percent": 50.25,
        "pressure": "normal",
        "thermal": "normal",
        "name": "NVIDIA GeForce RTX 3090",
        "uuid": "GPU-1",
        "host": "host",
        "gpu": "host/0",
        "source": "nvml",
        "stale": False,
        "detail": None,
    }
    assert {name: gpu[name] for name in expected} == expected
    assert 0 <= gpu["sample_age_ms"] < 3000


@pytest.mark.parametrize(
    ("thermal", "slowdown", "throttled"),
    [("throttling", "0", True), ("critical", "0", True), ("warning", "1", True), ("warning", "0", False),
     ("unknown", None, None)],
)  # fmt: skip
async def test_throttling_is_told_by_level_or_by_the_card(
    api: ApiClient, api_store: Store, thermal: str, slowdown: str | None, throttled: bool | None
) -> None:
    await _sample(api_store, level={"thermal": thermal}, thermal_slowdown=slowdown)

    assert (await _status(api))["gpu"]["is_throttled"] is throttled


async def test_what_was_not_read_is_null_and_never_zero(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, temperature_c=None, memory_used_mb=None, power_draw_w="nonsense")

    gpu = (await _status(api))["gpu"]

    for name in ("temperature_c", "memory_used_gb", "utilization_percent", "power_draw_w", "fan_percent"):
        assert gpu[name] is None, name
    assert gpu["memory_total_gb"] == 24.0


async def test_without_a_sample_the_status_says_so(api: ApiClient) -> None:
    status = await _status(api)

    assert {status["gpu"][name] for name in _SPECIFICATION} == {None}
    assert "no GPU was sampled yet" in status["gpu"]["detail"]
    assert status["gpus"] == []


async def test_the_last_levels_stand_when_a_monitor_falls_silent(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, level={"pressure": "high"})
    await api_store.redis.delete(api_store.keys.of("gpu", "host/0"))

    gpu = (await _status(api))["gpu"]

    assert (gpu["memory_used_gb"], gpu["effective_utilization_percent"], gpu["pressure"]) == (
        None,
        None,
        "high",
    )
    assert re.search(r"silent; .* those of its last one, \d+ s ago", gpu["detail"])


async def test_an_old_sample_is_called_stale(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, age_ms=5_000)

    gpu = (await _status(api))["gpu"]

    assert gpu["stale"] is True
    assert "ms old" in gpu["detail"]


async def test_several_gpus_are_listed_in_order_and_the_first_measured_one_leads(
    api: ApiClient, api_store: Store
) -> None:
    for name in ("host/10", "host/2", "host/0"):
        await _sample(api_store, name)
    await api_store.redis.delete(api_store.keys.of("gpu", "host/0"))

    status = await _status(api)

    assert [gpu["id"] for gpu in status["gpus"]] == [0, 2, 10]
    assert status["gpu"] == status["gpus"][1]


async def test_the_queue_is_shown_by_target_and_counted_for_each_model(
    api: ApiClient, api_store: Store
) -> None:
    heads = [await api.submit(model="alpha") for _ in range(2)] + [await api.submit(agent_type="Chat")]
    running = await api.submit(model="beta")
    await api_store.claim(running)
    await api_store.jobs.hold(heads[0], "model_busy", "alpha is full", ("action", "hold"))
    await _probe(api_store, "alpha", backend_waiting="3")

    status = await _status(api)

    queue = status["queue"]
    assert (queue["waiting"], queue["running"]) == (3, 1)
    assert {name: target["waiting"] for name, target in queue["targets"].items()} == {
        "alpha": 2,
        "auto:Chat": 1,
    }
    assert queue["targets"]["alpha"]["hold"]["reason"] == "alpha is full"
    assert queue["targets"]["auto:Chat"]["hold"] is None
    assert status["models"]["alpha"]["queue_size"] == 2 + 3
    assert status["models"]["alpha"]["in_flight"] == 1
    assert status["models"]["beta"]["queue_size"] == 0


async def test_a_model_shows_its_probe_while_that_is_fresh(api: ApiClient, api_store: Store) -> None:
    await _probe(api_store, "alpha", backend_running="1", gpu="host/0", kv_use="0.25")
    await _probe(api_store, "beta", age_ms=60_000, backend_running="1")

    models = (await _status(api))["models"]

    fresh = {
        name: models["alpha"][name] for name in ("residence", "backend_running", "kv_use", "gpu", "slots")
    }
    assert fresh == {
        "residence": "resident",
        "backend_running": 1,
        "kv_use": 0.25,
        "gpu": "host/0",
        "slots": 4,
    }
    assert (models["beta"]["residence"], models["beta"]["backend_running"]) == ("unknown", None)


async def test_a_model_shows_its_failures_and_its_breaker(api: ApiClient, api_store: Store) -> None:
    now_ms = await api_store.now_ms()
    await _model_fields(api_store, "alpha", failure_count="4", breaker_open_until_ms=str(now_ms + 60_000))
    await _model_fields(api_store, "beta", breaker_open_until_ms=str(now_ms - 1), avg_latency_ms="2500.04")

    models = (await _status(api))["models"]

    assert (models["alpha"]["failure_count"], models["alpha"]["breaker"]["state"]) == (4, "open")
    assert models["beta"]["breaker"]["state"] == "half_open"
    assert models["beta"]["avg_latency_ms"] == 2500.0


async def test_what_is_simulated_is_said(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, source="simulated")

    status = await _status(api)

    assert status["simulated"] is True
    assert status["gpu"]["source"] == "simulated"
    assert status["models"]["alpha"]["simulated"] is True


async def test_services_are_listed_with_their_age(api: ApiClient, api_store: Store) -> None:
    await api_store.fleet.heartbeat(
        "router-a", "b1", {"service": "router", "version": "1", "address": "pid 1"}
    )

    services = {service["instance"]: service for service in (await _status(api))["services"]}

    assert services["router-a"]["alive"] is True
    assert services["router-a"]["age_ms"] < 5000


async def _status(api: ApiClient) -> dict[str, Any]:
    answer = await api.get("/v1/gpu/status")
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    return body


async def _sample(
    store: Store,
    gpu: str = "host/0",
    *,
    age_ms: int = 0,
    level: Mapping[str, str] | None = None,
    **changes: str | None,
) -> None:
    fields = {name: value for name, value in {**_READING, **changes}.items() if value is not None}
    sample = GpuSample(gpu, "b1", 1, age_ms, fields, {**_LEVEL, **(level or {})})
    await store.fleet.publish_gpu(sample, ttl_s=30)


async def _probe(store: Store, model: str = "beta", *, age_ms: int = 0, **fields: str) -> None:
    await store.fleet.publish_backend(
        BackendSample(model, "b1", 1, age_ms, {"residence": "resident", "backend_waiting": "0", **fields})
    )


async def _model_fields(store: Store, model: str, **fields: str) -> None:
    for name, value in fields.items():
        await store.redis.hset(store.keys.model(model), name, value)
