"""GET /v1/gpu/memory-forecast, with the test in the place of monitor, router and the last eight days."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from services.api.forecast_bodies import MemoryForecast
from shared.store.fleet import BackendSample, GpuSample
from tests.kit.api_fixture import ApiClient
from tests.kit.store_fixture import Store

_PATH = "/v1/gpu/memory-forecast"
_TOTAL_MB, _USED_MB = 24_576, 12_349.44
_LEVEL = {"pressure": "normal", "full": "0", "thermal": "normal"}
_RANGES = ("low", "mid", "high")


async def test_without_a_sample_everything_is_null_and_says_why(api: ApiClient) -> None:
    body = await _forecast(api)

    assert (body["gpu"], body["gpus"]) == (None, [])
    assert set(body["current_usage"].values()) == {None}
    assert set(body["projected_headroom_gb"].values()) == {None}
    assert body["available_for_inference"]["now_gb"] is None
    assert body["forecast"]["quality"] == "no_samples"
    assert "no GPU was sampled yet" in body["detail"]
    assert body["requests_per_minute"]["alpha"]["now"] is None


async def test_a_first_sample_gives_the_present_and_no_interval(api: ApiClient, api_store: Store) -> None:
    """12.06 of 24 GB used, 3 GB reserve: the specification's example."""
    await _sample(api_store)

    body = await _forecast(api)

    assert body["gpu"] == "host/0"
    assert (body["current_usage"]["used_gb"], body["current_usage"]["free_gb"]) == (12.06, 11.94)
    assert body["current_usage"]["utilization_percent"] == 50.25
    assert body["projected_headroom_gb"] == {"low": None, "mid": 11.94, "high": None}
    assert body["available_for_inference"]["now_gb"] == 8.94
    assert body["available_for_inference"]["projected_gb"] == {"low": None, "mid": 8.94, "high": None}
    assert body["forecast"]["quality"] == "not_enough_history"
    assert "3 h are needed for 1 h ahead" in body["detail"]


async def test_before_the_first_bucket_the_reading_itself_is_projected(
    api: ApiClient, api_store: Store
) -> None:
    """The models were probed after the only reading there is."""
    await _sample(api_store, probed=False)
    await _resident(api_store, "beta", "host/0")
    await _resident(api_store, "alpha", "host/0", residence="unloaded")

    (gpu,) = (await _forecast(api))["gpus"]

    assert gpu["foreign"]["projected_gb"] == {"low": None, "mid": 5.56, "high": None}
    assert (gpu["projected_usage_gb"]["mid"], gpu["managed"]["now_gb"]) == (12.06, 6.5)


async def test_with_history_the_interval_is_in_order_and_its_record_is_published(
    api: ApiClient, api_store: Store
) -> None:
    await _past_memory(api_store, "host/0", days=3, foreign_mb=_daily)
    await _sample(api_store)

    body = await _forecast(api, "?hours=6")

    gpu, track = body["gpus"][0], body["forecast"]
    headroom = gpu["projected_headroom_gb"]
    for shown in (headroom, gpu["foreign"]["projected_gb"], gpu["projected_usage_gb"]):
        assert 0 <= shown["low"] <= shown["mid"] <= shown["high"] <= 24
    assert gpu["foreign"]["projected_gb"]["high"] <= gpu["foreign"]["peak_high_gb"]
    for low, high in zip(_RANGES, reversed(_RANGES), strict=True):
        assert headroom[low] == pytest.approx(24 - gpu["projected_usage_gb"][high], abs=0.002)
    assert gpu["available_for_inference"]["at_peak_gb"] <= max(0, headroom["mid"] - 3)
    assert (track["quality"], body["detail"]) == ("measured", None)
    assert track["history_hours"] > 70
    assert 0 < track["mase"] < 0.8
    # Of the twelve past forecasts that were checked 8 to 12 hit: it depends on the time of day.
    assert 0.5 < track["coverage"] <= 1
    assert sum(track["weights"].values()) == pytest.approx(1, abs=0.01)


async def test_foreign_memory_is_told_from_what_our_models_hold(api: ApiClient, api_store: Store) -> None:
    await _resident(api_store, "beta", "host/0")
    await _sample(api_store)

    (gpu,) = (await _forecast(api))["gpus"]

    assert gpu["managed"] == {"now_gb": 6.5, "projected_gb": 6.5, "models": ["beta"]}
    assert (gpu["foreign"]["now_gb"], gpu["foreign"]["projected_gb"]["mid"]) == (5.56, 5.56)
    assert gpu["projected_usage_gb"]["mid"] == 12.06


async def test_before_every_model_is_probed_nothing_is_called_foreign(
    api: ApiClient, api_store: Store
) -> None:
    await _past_memory(api_store, "host/0", days=3, foreign_mb=_daily)
    await _sample(api_store, probed=False)
    await _resident(api_store, "beta", "host/0")

    (gpu,) = (await _forecast(api))["gpus"]

    assert (gpu["foreign"]["now_gb"], gpu["foreign"]["projected_gb"]["mid"]) == (None, None)
    assert (gpu["managed"]["now_gb"], gpu["managed"]["models"]) == (None, [])
    # What is used as a whole is known, and projected as it is.
    assert gpu["projected_headroom_gb"] == {"low": None, "mid": 11.94, "high": None}
    assert gpu["available_for_inference"]["now_gb"] == 8.94
    assert "how much of it is ours is not known until a monitor has probed alpha;" in gpu["detail"]


async def test_while_a_model_loads_unmeasured_nothing_is_called_foreign(
    api: ApiClient, api_store: Store
) -> None:
    await _resident(api_store, "beta", "host/0", residence="loading")
    await _sample(api_store)
    (unknown,) = (await _forecast(api))["gpus"]
    await api_store.redis.hset(api_store.keys.model("beta"), "memory_mb", "1024")
    (measured,) = (await _forecast(api))["gpus"]

    assert (unknown["foreign"]["now_gb"], unknown["managed"]["now_gb"]) == (None, None)
    assert "not known until beta has come or gone;" in unknown["detail"]
    assert (measured["foreign"]["now_gb"], measured["managed"]["now_gb"]) == (11.06, 1.0)


async def test_two_gpus_are_forecast_apart_and_one_can_be_asked_for(api: ApiClient, api_store: Store) -> None:
    await _past_memory(api_store, "host/1", days=1, foreign_mb=lambda _: 2048.0)
    await _sample(api_store)
    await _sample(api_store, "host/1", memory_used_mb="2048", memory_total_mb="12288", reserve_mb="1024")

    both, second = await _forecast(api), await _forecast(api, "?gpu=host/1")
    by_index = await _forecast(api, "?gpu=1")

    assert [gpu["gpu"] for gpu in both["gpus"]] == ["host/0", "host/1"]
    assert both["current_usage"] == both["gpus"][0]["current_usage"]
    assert [gpu["forecast"]["quality"] for gpu in both["gpus"]] == ["not_enough_history", "measured"]
    assert [gpu["gpu"] for gpu in second["gpus"]] == ["host/1"] == [gpu["gpu"] for gpu in by_index["gpus"]]
    assert (second["gpu"], second["gpus"][0]["reserve_gb"]) == ("host/1", 1.0)
    assert second["projected_headroom_gb"] == {"low": 10.0, "mid": 10.0, "high": 10.0}
    assert second["available_for_inference"]["projected_gb"]["mid"] == 9.0


async def test_requests_are_forecast_for_every_model(api: ApiClient, api_store: Store) -> None:
    await _past_requests(api_store, "alpha", hours=12, per_minute=4)

    rates = (await _forecast(api))["requests_per_minute"]

    assert set(rates) == {"alpha", "beta"}
    assert rates["alpha"]["now"] == 4
    # Not exactly, once the minute has ended in which the last ones came.
    assert rates["alpha"]["projected"] == pytest.approx({"low": 4, "mid": 4, "high": 4}, abs=0.1)
    assert rates["alpha"]["forecast"]["quality"] == "measured"
    assert (rates["beta"]["now"], rates["beta"]["forecast"]["quality"]) == (None, "no_samples")
    assert "no request" in rates["beta"]["detail"]


async def test_an_old_sample_is_said_to_be_stale(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, age_ms=5000)

    body = await _forecast(api)

    assert body["current_usage"]["stale"] is True
    assert "ms old" in body["detail"]
    assert body["projected_headroom_gb"]["mid"] == 11.94


async def test_of_a_silent_gpu_nothing_is_projected(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store)
    await api_store.redis.delete(api_store.keys.of("gpu", "host/0"))

    body = await _forecast(api)

    assert body["gpu"] == "host/0"
    assert set(body["projected_headroom_gb"].values()) == {None}
    assert "the monitor of host is silent" in body["detail"]


async def test_a_card_whose_memory_cannot_be_read_says_so(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, memory_used_mb="nonsense")

    body = await _forecast(api)

    assert (body["current_usage"]["used_gb"], body["current_usage"]["total_gb"]) == (None, 24.0)
    assert "can't be read" in body["detail"]


@pytest.mark.parametrize("hours", ["0.24", "24.1", "0", "-1", "nan", "inf", "one", "", "1h", "9" * 5000])
async def test_hours_out_of_range_are_refused_with_the_range(api: ApiClient, hours: str) -> None:
    problem = (await api.get(_PATH, params={"hours": hours})).problem(422)

    assert problem["field"] == "hours"
    assert "give 0.25 to 24 hours" in problem["detail"]
    assert len(problem["detail"]) < 300


async def test_a_parameter_that_does_not_exist_is_refused(api: ApiClient) -> None:
    assert (await api.get(_PATH, params={"hour": "2"})).problem(422)["field"] == "hour"


@pytest.mark.parametrize("hours", ["0.25", "24", "1.5"])
async def test_hours_up_to_both_ends_are_answered(api: ApiClient, hours: str) -> None:
    assert (await _forecast(api, f"?hours={hours}"))["hours"] == float(hours)


async def test_an_unknown_gpu_is_refused_with_those_that_exist(api: ApiClient, api_store: Store) -> None:
    empty = (await api.get(_PATH, params={"gpu": "host/0"})).problem(404)
    for name in ("host/10", "host/2"):
        await _sample(api_store, name)

    problem = (await api.get(_PATH, params={"gpu": "host/7"})).problem(404)

    assert "none was sampled yet" in empty["detail"]
    assert problem["field"] == "gpu"
    assert "'host/7'; known: host/2, host/10" in problem["detail"]


async def test_the_document_says_the_range_of_hours(api: ApiClient) -> None:
    call = (await api.document())["paths"][_PATH]["get"]

    schemas = {one["name"]: one["schema"] for one in call["parameters"]}
    shown = {key: schemas["hours"][key] for key in ("type", "minimum", "maximum", "default")}
    assert shown == {"type": "number", "minimum": 0.25, "maximum": 24.0, "default": 1.0}
    # 401, 403 and 421 are those of the rim, in front of every call.
    assert set(call["responses"]) - {"401", "403", "421"} == {"200", "404", "422", "503"}


async def _forecast(api: ApiClient, query: str = "") -> dict[str, Any]:
    answer = await api.get(_PATH + query)
    assert answer.status == 200, answer
    MemoryForecast.model_validate(answer.body)
    body: dict[str, Any] = answer.body
    return body


async def _sample(
    store: Store, gpu: str = "host/0", *, age_ms: int = 0, probed: bool = True, **changes: str
) -> None:
    fields = {"memory_total_mb": str(_TOTAL_MB), "memory_used_mb": str(_USED_MB), "interval_ms": "1000"}
    sample = GpuSample(gpu, "b1", 1, age_ms, fields | changes, _LEVEL)
    if probed:
        for model in ("alpha", "beta"):
            # Found unreachable, unless the test has found it elsewhere before.
            seen = BackendSample(model, "b1", 1, 0, {"residence": "unloaded"})
            await store.fleet.publish_backend(seen)
    await store.fleet.publish_gpu(sample, ttl_s=30)


async def _resident(store: Store, model: str, gpu: str, *, residence: str = "resident") -> None:
    probe = {"residence": residence, "gpu": gpu}
    await store.fleet.publish_backend(BackendSample(model, "b1", 1, 0, probe))


def _daily(minute: int) -> float:
    """Foreign MB over a day: 600 at midnight, 8,600 at noon."""
    return 4600 - 4000 * math.cos(2 * math.pi * minute / 1440)


async def _past_memory(store: Store, gpu: str, *, days: int, foreign_mb: Callable[[int], float]) -> None:
    """Buckets of the last days up to the minute before this one, as the monitor's script writes them."""
    now = await store.now_ms() // 60_000
    buckets = {
        minute: f"60 {foreign_mb(minute):.2f} {foreign_mb(minute) + 100:.2f} "
        f"{foreign_mb(minute):.2f} {foreign_mb(minute) + 100:.2f} 0.00 0.00"
        for minute in range(now - days * 1440, now)
    }
    await _write(store, "gpu_history", gpu, buckets)


async def _past_requests(store: Store, model: str, *, hours: int, per_minute: int) -> None:
    now = await store.now_ms() // 60_000
    counts = {minute: str(per_minute) for minute in range(now - hours * 60, now + 1)}
    await _write(store, "request_history", model, counts)


async def _write(store: Store, kind: str, name: str, buckets: dict[int, str]) -> None:
    pipe = store.redis.pipeline(transaction=False)
    for minute, raw in buckets.items():
        key = store.keys.of(kind, f"{name}:{minute // 1440}")
        pipe.hset(key, str(minute % 1440), raw)
        pipe.expire(key, 600)
    await pipe.execute()
