"""GET and POST /v1/gpu/rebalance: advice with reasons, and the trace that only a POST leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from services.api.rebalance_bodies import Rebalance
from shared.registry import Registration
from shared.store.fleet import BackendSample, GpuSample
from shared.store.records import StreamEntry
from tests.kit.api_fixture import ApiClient, at_rest
from tests.kit.store_fixture import Store

_PATH = "/v1/gpu/rebalance"
_LEVEL = {"pressure": "normal", "full": "0", "thermal": "normal", "effective_utilization": "0.5"}


async def test_a_backlog_for_a_model_that_is_not_loaded_asks_for_its_load(
    api: ApiClient, api_store: Store
) -> None:
    await _fleet(api_store, used_gb=12)
    await api.submit(model="cold")

    (action,) = (await _get(api))["actions"]

    assert (action["action"], action["model"], action["gpu"], action["code"]) == (
        "load",
        "cold",
        "host/0",
        "backlog",
    )
    assert action["unloads"] == []
    assert action["needs_mb"] > 4 * 1024
    assert "1 job waits for cold" in action["reason"]
    assert "would be served" in action["changes"]


async def test_what_would_have_to_go_is_named_with_what_it_frees(api: ApiClient, api_store: Store) -> None:
    await _fleet(api_store, used_gb=18)
    await api.submit(model="cold")

    (action,) = (await _get(api))["actions"]

    assert (action["action"], action["unloads"]) == ("load", ["beta"])
    assert action["frees_mb"] == 6.5 * 1024


async def test_critical_heat_asks_for_one_model_alone(api: ApiClient, api_store: Store) -> None:
    await _fleet(api_store, used_gb=12, level={"thermal": "critical"}, temperature_c="88")

    (action,) = (await _get(api))["actions"]

    assert (action["action"], action["code"], action["gpu"]) == (
        "reduce_to_one_model",
        "heat_critical",
        "host/0",
    )
    assert action["unloads"] != []


async def test_when_all_is_well_it_says_so(api: ApiClient, api_store: Store) -> None:
    await _fleet(api_store, used_gb=12)

    (action,) = (await _get(api))["actions"]

    assert (action["action"], action["code"]) == ("nothing", "all_well")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_with_an_old_sample_it_says_that_it_does_not_know(
    api: ApiClient, api_store: Store, method: str
) -> None:
    await _fleet(api_store, used_gb=12, age_ms=42_000, interval_ms="1000")

    (action,) = (await api.call(method, _PATH)).body["actions"]

    assert (action["action"], action["code"], action["gpu"]) == ("nothing", "unknown_readings", "host/0")
    assert re.search(
        r"stopped \(last known [4-9]\d s ago\).* see that the monitor of host runs", action["reason"]
    )


async def test_when_the_sample_is_gone_it_still_knows_since_when(api: ApiClient, api_store: Store) -> None:
    await _fleet(api_store, used_gb=12, age_ms=42_000)
    await api_store.redis.delete(api_store.keys.of("gpu", "host/0"))  # as its TTL does

    (action,) = (await _get(api))["actions"]

    assert action["code"] == "unknown_readings"
    assert re.search(r"last known [4-9]\d s ago", action["reason"])


async def test_without_samples_nothing_is_advised_and_that_is_said(api: ApiClient) -> None:
    body = await _get(api)

    assert [(action["action"], action["code"]) for action in body["actions"]] == [
        ("nothing", "unknown_readings")
    ]
    assert "no GPU was sampled yet" in body["notes"][0]


async def test_a_preview_changes_nothing(api: ApiClient, api_store: Store) -> None:
    await _fleet(api_store, used_gb=12)
    await api.submit(model="cold")
    before = await at_rest(api_store)

    body = await _get(api)

    assert (body["id"], body["state"]) == (None, "preview")
    assert await at_rest(api_store) == before


async def test_a_request_leaves_its_advice_in_the_control_stream(api: ApiClient, api_store: Store) -> None:
    await _fleet(api_store, used_gb=12)
    await api.submit(model="cold")

    answer = await api.call("POST", _PATH)

    body = Rebalance.model_validate(answer.body)
    assert (answer.status, body.state) == (200, "recommended")
    entry = (await _control(api_store))[-1].fields
    assert list(entry)[:3] == ["v", "type", "id"]
    assert (entry["type"], entry["id"]) == ("rebalance.requested", body.id)
    (written,) = json.loads(entry["actions"])
    assert (written["action"], written["model"]) == ("load", "cold")
    assert entry["reason"] == body.actions[0].reason


async def test_without_a_launcher_nothing_is_carried_out_and_nothing_written(
    api: ApiClient, api_store: Store
) -> None:
    await _fleet(api_store, used_gb=12)
    before = await at_rest(api_store)

    problem = (await api.call("POST", f"{_PATH}?execute=true")).problem(409)

    assert "no launcher is running" in problem["detail"]
    assert await at_rest(api_store) == before


async def test_a_parameter_that_means_nothing_is_refused(api: ApiClient) -> None:
    assert (await api.call("POST", f"{_PATH}?exec=true")).problem(422)["field"] == "exec"


async def _get(api: ApiClient) -> dict[str, Any]:
    answer = await api.get(_PATH)
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    Rebalance.model_validate(body)
    return body


async def _control(store: Store) -> tuple[StreamEntry, ...]:
    return (await store.dump()).streams[store.keys.control]


async def _fleet(
    store: Store,
    *,
    used_gb: float,
    level: Mapping[str, str] | None = None,
    age_ms: int = 0,
    **reading: str,
) -> None:
    """alpha (2 GB) and beta (6.5 GB) resident and idle on one card of 24 GB, cold (4 GB) unloaded."""
    await store.fleet.register([Registration(name="cold", port=9000, vram_gb=4, agent_types=("Code",))])
    fields = {"memory_total_mb": "24576", "memory_used_mb": str(used_gb * 1024), "interval_ms": "60000"}
    await store.fleet.publish_gpu(
        GpuSample("host/0", "b1", 1, age_ms, {**fields, **reading}, {**_LEVEL, **(level or {})}), ttl_s=60
    )
    for name, residence in (("alpha", "resident"), ("beta", "resident"), ("cold", "unloaded")):
        seen = {"residence": residence, "gpu": "host/0", "backend_running": "0", "backend_waiting": "0"}
        await store.fleet.publish_backend(BackendSample(name, "b1", 1, 0, {**seen, "host": "host"}))
