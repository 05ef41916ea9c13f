"""GET /v1/gpu/history: the rolling window as typed numbers, newest first."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.history_bodies import History
from shared.store.fleet import BackendSample, GpuSample
from tests.kit.api_fixture import ApiClient
from tests.kit.store_fixture import Store

_READING = {
    "memory_total_mb": "24576",
    "memory_used_mb": "12349.44",
    "memory_free_mb": "12226.56",
    "gpu_utilization_percent": "37",
    "effective_utilization": "0.5025",
    "temperature_c": "49",
    "power_draw_w": "150",
    "source": "nvml",
}
_LEVEL = {"pressure": "normal", "full": "0", "thermal": "normal"}


async def test_a_sample_comes_back_as_numbers(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, 1)

    (sample,) = (await _history(api))["samples"]

    assert abs(sample.pop("ts_ms") - await api_store.now_ms()) < 5000
    assert sample == {
        "gpu": "host/0",
        "memory_used_gb": 12.06,
        "memory_total_gb": 24.0,
        "memory_available_gb": 11.94,
        "utilization_percent": 50.25,
        "effective_utilization_percent": 50.25,
        "gpu_utilization_percent": 37.0,
        "temperature_c": 49.0,
        "power_draw_w": 150.0,
        "pressure": "normal",
        "thermal": "normal",
        "level_changed": True,
        "late": False,
        "source": "nvml",
    }


async def test_the_newest_come_first_and_no_more_than_asked_for(api: ApiClient, api_store: Store) -> None:
    for seq in range(1, 151):
        await _sample(api_store, seq, temperature_c=str(seq), age_ms=1000 - seq)

    short, default = await _history(api, "?limit=3"), await _history(api)

    assert [sample["temperature_c"] for sample in short["samples"]] == [150, 149, 148]
    assert len(default["samples"]) == 100


async def test_a_late_sample_is_marked_and_stands_where_it_was_taken(
    api: ApiClient, api_store: Store
) -> None:
    await _sample(api_store, 1, temperature_c="40", age_ms=3000)
    await _sample(api_store, 2, temperature_c="60", age_ms=0)
    await _sample(api_store, 1, boot="other", temperature_c="50", age_ms=2000)

    samples = (await _history(api))["samples"]

    assert [(one["temperature_c"], one["late"], one["pressure"]) for one in samples] == [
        (60, False, "normal"),
        (50, True, None),
        (40, False, "normal"),
    ]


async def test_what_was_not_read_is_null(api: ApiClient, api_store: Store) -> None:
    fields = {"memory_total_mb": "24576", "temperature_c": "hot"}
    await api_store.fleet.publish_gpu(GpuSample("host/0", "b", 1, 0, fields, _LEVEL), ttl_s=30)

    (sample,) = (await _history(api))["samples"]

    assert (sample["memory_total_gb"], sample["memory_used_gb"], sample["temperature_c"]) == (
        24.0,
        None,
        None,
    )
    assert (sample["utilization_percent"], sample["power_draw_w"]) == (None, None)


async def test_a_gpu_is_found_among_others_however_many_samples_these_have(
    api: ApiClient, api_store: Store
) -> None:
    await _sample(api_store, 1, gpu="host/1")
    pipe = api_store.redis.pipeline()
    for number in range(1200):
        pipe.xadd(api_store.keys.gpu_samples, {"gpu": "host/0", "ts_ms": str(number)})
    await pipe.execute()
    await _sample(api_store, 1, gpu="host/0")

    by_id, by_index = await _history(api, "?gpu=host/1"), await _history(api, "?gpu=1")
    both = await _history(api, "?limit=1000")

    assert [one["gpu"] for one in by_id["samples"]] == ["host/1"]
    assert by_index == by_id
    assert {one["gpu"] for one in both["samples"]} == {"host/0"}
    assert both["gpus"] == ["host/0", "host/1"]


async def test_a_models_history_is_that_of_its_gpu_and_its_own_probes(
    api: ApiClient, api_store: Store
) -> None:
    for gpu in ("host/0", "host/1"):
        await _sample(api_store, 1, gpu=gpu)
    fields = {"residence": "resident", "gpu": "host/1", "backend_running": "2", "probe_latency_ms": "1.5"}
    await api_store.fleet.publish_backend(BackendSample("alpha", "b", 1, 0, fields))
    await api_store.fleet.publish_backend(BackendSample("beta", "b", 1, 0, {"residence": "failed"}))

    alpha, beta = await _history(api, "?model=alpha"), await _history(api, "?model=beta")

    assert [one["gpu"] for one in alpha["samples"]] == ["host/1"]
    assert [(one["residence"], one["backend_running"], one["latency_ms"]) for one in alpha["probes"]] == [
        ("resident", 2, 1.5)
    ]
    assert (beta["samples"], len(beta["probes"])) == ([], 1)
    assert "which GPU beta is on is not known" in beta["detail"]
    assert (await _history(api))["probes"] is None


async def test_without_samples_it_says_why(api: ApiClient) -> None:
    body = await _history(api)

    assert body["samples"] == []
    assert "no GPU was sampled yet" in body["detail"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("limit=0", 422, "give 1 to 1000"),
        ("limit=1001", 422, "give 1 to 1000"),
        ("limit=all", 422, "give 1 to 1000"),
        ("limits=5", 422, "no parameter of this call"),
        ("gpu=host/9", 404, "known: host/0"),
        ("model=gamma", 404, "known: alpha, beta"),
    ],
)
async def test_what_cannot_be_is_refused_with_what_could(
    api: ApiClient, api_store: Store, query: str, status: int, said: str
) -> None:
    await _sample(api_store, 1)

    assert said in (await api.get(f"/v1/gpu/history?{query}")).problem(status)["detail"]


async def _history(api: ApiClient, query: str = "") -> dict[str, Any]:
    answer = await api.get(f"/v1/gpu/history{query}")
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    History.model_validate(body)
    return body


async def _sample(
    store: Store, seq: int, *, gpu: str = "host/0", boot: str = "b1", age_ms: int = 0, **changes: str
) -> None:
    await store.fleet.publish_gpu(
        GpuSample(gpu, boot, seq, age_ms, {**_READING, **changes}, _LEVEL), ttl_s=30
    )
