"""POST /v1/gpu/benchmark-model: real requests through the whole, behind live traffic, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.api.benchmark_bodies import Benchmark
from services.api.benchmark_run import CALLER
from shared.config import HistorySettings
from shared.registry import Registration
from shared.states import JobState
from shared.store.benchmarks import BenchmarkStore, Measurable, TurnOutcome
from shared.store.fleet import BackendSample, GpuSample
from tests.kit.api_fixture import Answer, ApiClient
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.simulation import Simulation
from tests.kit.stack import Stack, running_stack
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

_PATH = "/v1/gpu/benchmark-model"
_SPEED = 400.0
_LEVEL = {"pressure": "normal", "full": "0", "thermal": "normal"}


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    first, second = free_ports(2)
    models = [
        simulated_model("alpha", first, tokens_per_second=_SPEED, slots=2),
        simulated_model("beta", second, vram_gb=6.0),
    ]
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, simulated_config(models), services) as stack:
        yield stack


async def test_a_model_is_measured_and_what_was_measured_is_learned(stack: Stack) -> None:
    answer = await _post(stack, "model_name=alpha&count=5&prompt_tokens=100&max_tokens=20&concurrency=2")

    body = Benchmark.model_validate(answer.body)
    assert (answer.status, body.state, body.error) == (200, "succeeded", None)
    assert (body.requests, body.succeeded, body.errors) == (5, 5, {})
    assert (body.output_tokens, body.served_by, body.simulated) == (5 * 20, {"alpha": 5}, True)
    assert 5 * 100 <= body.prompt_tokens <= 5 * 102
    for spread in (body.ttft_ms, body.latency_ms, body.queue_wait_ms, body.prefill_tokens_per_second):
        assert spread is not None
        assert 0 <= spread.p50 <= spread.p90 <= spread.p99
    # The simulated server generates at the speed that it was told: more would be a wrong figure.
    assert body.decode_tokens_per_second is not None
    assert 0 < body.decode_tokens_per_second.p50 < 1.2 * _SPEED
    assert body.latency_ms is not None
    assert body.ttft_ms is not None
    assert body.latency_ms.p50 >= body.ttft_ms.p50 + 1000 * 15 / _SPEED
    assert [level.gpu for level in body.levels] == ["host/0"] * len(body.levels) != []
    assert (await _get(stack, answer.headers["location"])).body == answer.body

    async with stack.http.get(f"{stack.api}/v1/gpu/models/alpha") as got:
        model = await got.json()
    assert model["benchmark"]["benchmark_id"] == body.benchmark_id
    assert model["benchmark"]["decode_tokens_per_second"] == body.decode_tokens_per_second.p50
    assert model["learned"]["samples"] == 5
    assert 0 < model["learned"]["tokens_per_second"] < 1.5 * _SPEED

    started = [entry for entry in await stack.events() if entry.fields["type"] == "job.started"]
    jobs = [await stack.job(entry.fields["job_id"]) for entry in started]
    assert {(job["model"], job["priority"], job["decision"]["model"]) for job in jobs} == {
        ("alpha", 0, "alpha")
    }
    assert await _most_at_once(stack) <= 2


async def test_live_jobs_go_first_and_the_benchmark_waits_for_them(stack: Stack) -> None:
    """Ten jobs of 0.25 s on two slots, while a benchmark wants eight at once."""
    asked = asyncio.create_task(
        _post(stack, "model_name=alpha&duration_s=3&max_tokens=100&prompt_tokens=8&concurrency=8")
    )
    await wait_until(lambda: _is_busy(stack), "the benchmark is at work")
    live = [await stack.submit(prompt="hi", model="alpha", max_tokens=100) for _ in range(10)]
    ended = [await stack.ended(job) for job in live]
    answer = await asked

    assert {job["state"] for job in ended} == {"succeeded"}
    assert answer.body["yielded_ms"] > 0
    order = [
        entry.fields["job_id"] in live
        for entry in await stack.events()
        if entry.fields["type"] == "job.started"
    ]
    first, last = order.index(True), len(order) - 1 - order[::-1].index(True)
    # Only those that were queued already when the first live job came may still be among them.
    assert order[first:last].count(False) <= 2

    async def all_over() -> bool:
        return await stack.jobs.counts() == (0, 0)

    await wait_until(all_over, "what the benchmark gave up is over")


async def test_errors_are_counted_by_type_and_nothing_is_retried(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.fault("beta", kind="status", status=400, times=2)

    body = (await _post(stack, "model_name=beta&count=4&max_tokens=4&duration_s=20")).body

    assert (body["state"], body["requests"], body["succeeded"]) == ("succeeded", 4, 2)
    assert sum(body["errors"].values()) == 2

    await simulation.fault("beta", kind="status", status=400)
    body = (await _post(stack, "model_name=beta&count=2&max_tokens=4&duration_s=20")).body

    assert (body["state"], body["error"]["type"], body["ttft_ms"]) == ("failed", "all_failed", None)


async def test_one_runs_for_a_model_at_a_time_and_a_client_that_leaves_cancels_it(stack: Stack) -> None:
    query = "model_name=alpha&duration_s=60&max_tokens=200&concurrency=2"
    waiting = asyncio.create_task(_post(stack, query))
    await wait_until(lambda: _is_busy(stack), "the benchmark is at work")

    second = await _post(stack, query)
    other = await _post(stack, "model_name=beta&wait=0&duration_s=2&max_tokens=4")

    location = second.problem(409)["detail"].partition("read ")[2].partition(",")[0]
    assert (await _get(stack, location)).body["state"] == "running"
    assert (other.status, other.body["state"], other.body["model"]) == (202, "running", "beta")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    async def ended(path: str) -> dict[str, Any] | None:
        body: dict[str, Any] = (await _get(stack, path)).body
        return body if body["state"] != "running" else None

    left = await wait_until(lambda: ended(location), "it is cancelled")
    assert (left["state"], left["error"]["type"]) == ("cancelled", "client_left")
    await wait_until(lambda: _nothing_live(stack), "its jobs are gone")
    measured = await wait_until(lambda: ended(other.body["location"]), "the other one ends")
    assert measured["state"] == "succeeded"


async def test_a_model_removed_meanwhile_ends_its_benchmark_instead_of_a_storm_of_refused_jobs(
    stack: Stack,
) -> None:
    alpha = next(model for model in stack.settings.models if model.name == "alpha")
    guest = {"port": alpha.port, "vram_gb": 2.0, "slots": 2, "context_tokens": 4096}
    async with stack.http.put(f"{stack.api}/v1/gpu/models/guest", json=guest) as answer:
        assert answer.status == 201
    begun = (await _post(stack, "model_name=guest&wait=0&duration_s=30&max_tokens=4&concurrency=4")).body

    async def at_work() -> bool:
        return int((await _get(stack, begun["location"])).body["requests"] or 0) > 0

    await wait_until(at_work, "the benchmark is at work")
    async with stack.http.delete(f"{stack.api}/v1/gpu/models/guest") as answer:
        assert answer.status == 204

    async def ended() -> dict[str, Any] | None:
        body: dict[str, Any] = (await _get(stack, begun["location"])).body
        return body if body["state"] != "running" else None

    body = await wait_until(ended, "the benchmark ends")

    assert body["state"] == "failed"
    assert body["error"]["type"] in ("unknown_model", "model_removed")
    refused = await stack.jobs.list_newest(state=JobState.FAILED, limit=1000)
    assert len(refused) <= 20


async def test_a_level_that_gets_critical_ends_it_early_and_refuses_the_next(stack: Stack) -> None:
    simulation = Simulation(stack)
    asked = asyncio.create_task(_post(stack, "model_name=alpha&duration_s=60&max_tokens=4"))
    await wait_until(lambda: _is_busy(stack), "the benchmark is at work")

    await simulation.gpu(temperature_c=87)
    body = (await asked).body
    refused = await _post(stack, "model_name=alpha")

    assert body["state"] == "succeeded"
    assert "critical heat" in body["ended_early"]
    assert {"gpu": "host/0", "thermal": "critical"}.items() <= body["levels"][-1].items()
    assert "critical heat" in refused.problem(409)["detail"]


async def test_an_api_that_stops_ends_its_benchmark_and_says_so(tmp_path: Path, redis_url: str) -> None:
    (port,) = free_ports(1)
    config = simulated_config([simulated_model("alpha", port, tokens_per_second=_SPEED)])
    async with Stack(tmp_path, {**config, "redis": {"url": redis_url}}) as stack:
        api = [stack.start(service) for service in ("simulator", "monitor", "router", "api")][-1]
        await stack.ready()
        location = (await _post(stack, "model_name=alpha&wait=0&duration_s=60&max_tokens=200")).body[
            "location"
        ]
        await wait_until(lambda: _is_busy(stack), "the benchmark is at work")

        assert await stack.stop(api) == 0

        benchmarks = BenchmarkStore(stack.redis, stack.keys, HistorySettings(), 60.0)
        record = await benchmarks.get(location.rpartition("/")[2])
        assert record is not None
        assert (record.fields["state"], record.fields["error_type"]) == ("failed", "interrupted")
        await wait_until(lambda: _nothing_live(stack), "its jobs are gone")


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ("model_name=alpha&duration_s=0", "duration_s", "give 0.5 to 300 seconds"),
        ("model_name=alpha&duration_s=nan", "duration_s", "give 0.5 to 300 seconds"),
        ("model_name=alpha&duration_s=soon", "duration_s", "'soon'"),
        ("model_name=alpha&concurrency=65", "concurrency", "give 1 to 64"),
        ("model_name=alpha&count=0", "count", "give 1 to 10000"),
        ("model_name=alpha&max_tokens=0", "max_tokens", "give 1 to 100000"),
        ("model_name=alpha&prompt_tokens=4096", "prompt_tokens", "context of 4096 tokens"),
        ("model_name=alpha&wait=-1", "wait", "give 0 to 1000 seconds"),
        ("model_name=alpha&duration=5", "duration", "no parameter of this call"),
        ("", "model_name", "required"),
    ],
)
async def test_a_wrong_parameter_is_named_with_its_range(
    api: ApiClient, api_store: Store, query: str, field: str, said: str
) -> None:
    problem = (await api.call("POST", f"{_PATH}?{query}")).problem(422)

    assert problem["field"] == field
    assert said in problem["detail"]
    assert await api_store.jobs.counts() == (0, 0)


async def test_an_unknown_model_or_benchmark_is_a_404(api: ApiClient) -> None:
    model = (await api.call("POST", f"{_PATH}?model_name=gamma")).problem(404)
    benchmark = (await api.get("/v1/gpu/benchmarks/none")).problem(404)

    assert model["known"] == ["alpha", "beta"]
    assert "kept no longer" in benchmark["detail"]


async def test_a_name_that_only_stands_for_a_registration_is_refused_with_the_right_one(
    api: ApiClient, api_store: Store
) -> None:
    await api_store.fleet.register([Registration(name="replica-1", port=1, serves=("shared",))])

    assert (
        "answers to shared only"
        in (await api.call("POST", f"{_PATH}?model_name=replica-1")).problem(422)["detail"]
    )


@pytest.mark.parametrize(
    ("level", "residence", "said"),
    [
        ({"pressure": "critical"}, "resident", "critical memory pressure"),
        ({"thermal": "critical"}, "resident", "critical heat"),
        ({}, "unloaded", "unloaded"),
        ({}, "failed", "failed its last probe"),
    ],
)
async def test_a_model_that_could_not_be_measured_now_is_refused_with_the_reason(
    api: ApiClient, api_store: Store, level: dict[str, str], residence: str, said: str
) -> None:
    await api_store.fleet.publish_gpu(GpuSample("host/0", "b", 1, 0, {}, {**_LEVEL, **level}), ttl_s=30)
    probe = {"residence": residence, "gpu": "host/0"}
    await api_store.fleet.publish_backend(BackendSample("alpha", "b", 1, 0, probe))

    assert said in (await api.call("POST", f"{_PATH}?model_name=alpha")).problem(409)["detail"]
    assert await api_store.jobs.counts() == (0, 0)


async def test_nothing_dispatched_is_no_measurement(api: ApiClient, api_store: Store) -> None:
    """No router lives here: the one job is cancelled when time is up."""
    body = (await api.call("POST", f"{_PATH}?model_name=alpha&duration_s=2")).body

    assert (body["state"], body["error"]["type"], body["requests"]) == ("failed", "nothing_measured", 0)
    (job,) = await api_store.jobs.list_newest(state=None, limit=5)
    assert (job.state, job.fields["caller"]) == (JobState.CANCELLED, CALLER)


async def test_a_benchmark_whose_api_died_reads_as_failed(api: ApiClient, api_store: Store) -> None:
    benchmarks = _benchmarks(api_store)
    alpha = Measurable("alpha", ("alpha",), ("alpha",))
    assert await benchmarks.begin("b1", alpha, {"requests": "0"}) == "b1"
    alive = (await api.get("/v1/gpu/benchmarks/b1")).body

    await api_store.redis.delete(api_store.keys.of("benchmarking", "alpha"))  # as its TTL does
    dead = (await api.get("/v1/gpu/benchmarks/b1")).body

    assert (alive["state"], dead["state"], dead["error"]["type"]) == ("running", "failed", "interrupted")
    assert await benchmarks.begin("b2", alpha, {}) == "b2"
    turn = await benchmarks.turn("b1", alpha, caller=CALLER, fields={})
    assert turn.outcome is TurnOutcome.LOST


def _benchmarks(store: Store) -> BenchmarkStore:
    return BenchmarkStore(store.redis, store.keys, HistorySettings(), 60.0)


async def _post(stack: Stack, query: str) -> Answer:
    async with stack.http.post(f"{stack.api}{_PATH}?{query}") as got:
        return Answer(got.status, got.headers, await got.text())


async def _get(stack: Stack, path: str) -> Answer:
    async with stack.http.get(f"{stack.api}{path}") as got:
        return Answer(got.status, got.headers, await got.text())


async def _is_busy(stack: Stack) -> bool:
    return await stack.in_flight("alpha") > 0


async def _nothing_live(stack: Stack) -> bool:
    return await stack.jobs.counts() == (0, 0)


async def _most_at_once(stack: Stack) -> int:
    most = now = 0
    for entry in await stack.events():
        kind = entry.fields["type"]
        now += 1 if kind == "job.queued" else -1 if kind == "job.succeeded" else 0
        most = max(most, now)
    return most
