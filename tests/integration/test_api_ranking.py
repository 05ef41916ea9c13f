"""GET /v1/gpu/models-optimal: the order of routing with reasons, held against the core and the router."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.api.ranking_bodies import Ranking
from shared.decision.routing import decide, rank
from shared.decision.snapshot import Request
from shared.registry import Registration
from shared.snapshots import snapshot_of
from shared.store.fleet import BackendSample, GpuSample
from tests.kit.api_fixture import ApiClient, ApiProcess, api_config, serving, state_on
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.simulation import Simulation
from tests.kit.stack import running_stack
from tests.kit.store_fixture import Store

_READING = {
    "memory_total_mb": "24576",
    "memory_used_mb": "12288",
    "temperature_c": "50",
    "source": "nvml",
    "interval_ms": "1000",
}
_LEVEL = {"pressure": "normal", "full": "0", "thermal": "normal", "effective_utilization": "0.5"}


@pytest.fixture
async def fleet(api_store: Store) -> Store:
    """Four models on one card: two idle, one busy, one that failed and one that is not loaded."""
    await api_store.fleet.register(
        [
            Registration(name="busy", port=9001, vram_gb=2, slots=4, agent_types=("Chat",)),
            Registration(name="failing", port=9002, vram_gb=2, slots=4, agent_types=("Chat",)),
            Registration(name="cold", port=9003, vram_gb=5, slots=4, agent_types=("Chat",)),
        ]
    )
    await _sample(api_store, "host/0")
    for name in ("alpha", "beta", "busy", "failing"):
        await _probe(api_store, name)
    await _probe(api_store, "cold", residence="unloaded")
    await _fields(api_store, "busy", in_flight="0", backend_running="3", probe_in_flight="0")
    now = str(await api_store.now_ms())
    await _fields(api_store, "failing", failure_ema="0.5", failure_ema_ms=now)
    return api_store


async def test_the_order_is_that_of_routing_and_its_first_is_what_would_be_chosen(
    api: ApiClient, api_process: ApiProcess, fleet: Store
) -> None:
    body = await _ranking(api, "?agent_type=Chat")

    snapshot = snapshot_of(await fleet.fleet.view(heads=0), api_process.settings)
    request = Request(agent_type="Chat", fallback=True, deadline_in_ms=600_000.0)
    ranked, decision = rank(snapshot, request), decide(snapshot, request)
    shown = [one for one in body["models"] if one["rank"] is not None]
    assert [one["model"] for one in shown] == [one.model.name for one in ranked]
    assert [one["rank"] for one in shown] == list(range(1, len(ranked) + 1))
    assert decision.model is not None
    assert [one["model"] for one in body["models"] if one["would_be_chosen"]] == [decision.model.name]
    assert (body["decision"]["model"], body["decision"]["action"]) == (decision.model.name, "dispatch")
    assert body["models"][0]["would_be_chosen"]
    assert body["decision"]["reason"] == body["models"][0]["reason"]


@pytest.mark.usefixtures("fleet")
async def test_scores_fall_from_1_to_0_and_every_number_is_finite(api: ApiClient) -> None:
    models = (await _ranking(api, "?agent_type=Chat&prompt_tokens=300&max_tokens=64"))["models"]

    scores = [one["score"] for one in models]
    assert (scores[0], scores[-1]) == (1.0, 0.0)
    assert scores == sorted(scores, reverse=True)
    numbers = [value for one in models for value in one["parts"].values() if value is not None]
    assert all(math.isfinite(value) for value in [*scores, *numbers])
    for one in models:
        for name in ("fit", "latency", "reliability", "affinity", "load", "mode", "size"):
            assert 0 <= one["parts"][name] <= 1, (one["model"], name)


@pytest.mark.usefixtures("fleet")
async def test_the_parts_say_what_is_wrong_with_each_model(api: ApiClient) -> None:
    models = {one["model"]: one for one in (await _ranking(api, "?agent_type=Chat"))["models"]}

    assert models["failing"]["parts"]["reliability"] == pytest.approx(0.5, abs=0.05)
    assert (models["busy"]["parts"]["load"], models["alpha"]["parts"]["load"]) == (0.25, 1.0)
    assert (models["alpha"]["parts"]["fit"], models["beta"]["parts"]["latency"]) == (1.0, 1.0)
    # 24 GB, 12.5 of them held by what is resident, 3 reserved, and 5 GB with a margin of 300 MB to come.
    assert models["cold"]["parts"]["fit"] == pytest.approx((24 - 12.5 - 3 - 5 - 300 / 1024) / 24, abs=0.001)
    assert "comes after" in models["failing"]["reason"]
    assert models["alpha"]["gpu"] == "host/0"


@pytest.mark.usefixtures("fleet")
async def test_a_model_that_is_left_out_comes_last_with_code_and_reason(api: ApiClient) -> None:
    last = (await _ranking(api, "?agent_type=Chat"))["models"][-1]

    assert (last["model"], last["rank"], last["code"], last["would_be_chosen"]) == (
        "cold",
        None,
        "not_resident",
        False,
    )
    assert "unloaded" in last["reason"]
    assert (last["score"], last["estimated_duration_ms"]) == (0.0, None)


@pytest.mark.usefixtures("fleet")
async def test_the_agent_type_the_name_and_the_context_narrow_the_choice(api: ApiClient) -> None:
    medical = await _ranking(api, "?agent_type=MedicalQA")
    named = await _ranking(api, "?model=alpha")
    wide = await _ranking(api, "?model=alpha&min_context_tokens=9999")

    assert [one["model"] for one in medical["models"] if one["rank"]] == ["beta"]
    assert {one["code"] for one in medical["models"] if one["rank"] is None} == {"not_serving"}
    assert [one["model"] for one in named["models"] if one["rank"]] == ["alpha"]
    assert (wide["decision"]["action"], wide["decision"]["code"]) == ("reject", "context_too_small")
    assert {one["rank"] for one in wide["models"]} == {None}


async def test_mode_and_preference_change_the_order_as_they_do_in_routing(
    api: ApiClient, api_store: Store
) -> None:
    for name, backend in (("llama", "llama_cpp"), ("vllm", "vllm")):
        entry = {"name": name, "port": 9000, "backend": backend, "slots": 4, "agent_types": ["Code"]}
        await api_store.fleet.register([Registration.model_validate(entry)])
        await _probe(api_store, name)

    first = {
        query: (await _ranking(api, f"?agent_type=Code&{query}"))["models"][0]["model"]
        for query in ("mode=batch", "mode=interactive", "priority=0", "mode=batch&prefer_llama_cpp=true")
    }

    assert list(first.values()) == ["vllm", "llama", "vllm", "llama"]


async def test_an_unknown_agent_type_or_model_is_a_404_with_the_list(api: ApiClient) -> None:
    agent = (await api.get("/v1/gpu/models-optimal?agent_type=Poetry")).problem(404)
    model = (await api.get("/v1/gpu/models-optimal?model=gamma")).problem(404)

    assert (agent["type"].rpartition(":")[2], agent["known"]) == ("unknown-agent-type", ["Chat", "MedicalQA"])
    assert "Chat, MedicalQA" in agent["detail"]
    assert (model["type"].rpartition(":")[2], model["known"]) == ("unknown-model", ["alpha", "beta"])


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ("priority=10", "priority", "give 0 to 9"),
        ("max_tokens=0", "max_tokens", "give 1 to 1000000"),
        ("prompt_tokens=many", "prompt_tokens", "give 1 to 100000000"),
        ("mode=fast", "mode", "'interactive' or 'batch'"),
        ("agent=Chat", "agent", "no parameter of this call"),
        ("agent_type=", "agent_type", "at least 1"),
    ],
)
async def test_a_wrong_parameter_is_named_with_its_range(
    api: ApiClient, query: str, field: str, said: str
) -> None:
    problem = (await api.get(f"/v1/gpu/models-optimal?{query}")).problem(422)

    assert problem["field"] == field
    assert said in problem["detail"]


async def test_without_samples_it_ranks_all_the_same_and_says_so(api: ApiClient) -> None:
    body = await _ranking(api, "?agent_type=Chat")

    assert [one["rank"] for one in body["models"]] == [1, 2]
    assert "no GPU was sampled yet" in body["notes"][0]
    assert "unknown" in body["decision"]["reason"]
    assert body["models"][0]["parts"]["fit"] is None


async def test_old_samples_are_called_old(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, "host/0", age_ms=5000)

    assert "ms old" in (await _ranking(api, ""))["notes"][0]


async def test_on_two_cards_each_model_is_judged_by_its_own(api: ApiClient, api_store: Store) -> None:
    await _sample(api_store, "host/0", level={"thermal": "critical"})
    await _sample(api_store, "host/1")
    await _probe(api_store, "alpha", gpu="host/0")
    await _probe(api_store, "beta", gpu="host/1")

    body = await _ranking(api, "?agent_type=Chat")

    assert [(one["model"], one["gpu"], one["rank"]) for one in body["models"]] == [
        ("beta", "host/1", 1),
        ("alpha", "host/0", None),
    ]
    assert body["models"][1]["code"] == "heat_critical"
    assert [gpu["gpu"] for gpu in body["gpus"]] == ["host/0", "host/1"]


async def test_without_any_model_the_decision_says_what_is_missing(store: Store, tmp_path: Path) -> None:
    state = state_on(store, api_config(store.url, tmp_path))

    async with serving(state) as url, aiohttp.ClientSession() as session:
        body = await _ranking(ApiClient(session, url), "")

    assert (body["models"], body["decision"]["action"]) == ([], "hold")
    assert "no model is registered yet" in body["decision"]["reason"]


async def test_what_it_would_choose_is_what_the_router_chooses(tmp_path: Path, redis_url: str) -> None:
    """The same situation asked and tried: the ranking is no second opinion."""
    first, second = free_ports(2)
    models = [
        simulated_model("alpha", first, tokens_per_second=40.0),
        simulated_model("beta", second, vram_gb=6.0, tokens_per_second=160.0),
    ]
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, simulated_config(models), services) as stack:
        simulation = Simulation(stack)
        for utilization, pressure in ((0.3, "low"), (0.78, "high")):
            await simulation.gpu(utilization=utilization)
            await simulation.level(pressure=pressure)
            async with stack.http.get(
                f"{stack.api}/v1/gpu/models-optimal?agent_type=Chat&max_tokens=4"
            ) as got:
                chosen = (await got.json())["models"][0]
            job = await stack.ended(await stack.submit(prompt="hi", agent_type="Chat", max_tokens=4))
            assert chosen["would_be_chosen"]
            assert job["decision"]["model"] == chosen["model"]


async def _ranking(api: ApiClient, query: str) -> dict[str, Any]:
    answer = await api.get(f"/v1/gpu/models-optimal{query}")
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    Ranking.model_validate(body)
    return body


async def _sample(store: Store, gpu: str, *, age_ms: int = 0, level: Mapping[str, str] | None = None) -> None:
    await store.fleet.publish_gpu(
        GpuSample(gpu, "b1", 1, age_ms, _READING, {**_LEVEL, **(level or {})}), ttl_s=30
    )


async def _probe(store: Store, model: str, **fields: str) -> None:
    seen = {"residence": "resident", "gpu": "host/0", "backend_waiting": "0", **fields}
    await store.fleet.publish_backend(BackendSample(model, "b1", 1, 0, seen))


async def _fields(store: Store, model: str, **fields: str) -> None:
    for name, value in fields.items():
        await store.redis.hset(store.keys.model(model), name, value)
