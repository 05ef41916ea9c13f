"""What the in-process balancer learns from requests: latency, speed, failures, what is in flight."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator

import pytest

from shared.balancer import BackendType, LoadBalancer
from shared.errors import InvalidRequest
from shared.states import Action
from tests.kit.balancer import Bench, specified

LLAMA, VLLM = BackendType.LLAMA_CPP, BackendType.VLLM


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = specified()
    yield made
    await made.balancer.aclose()


async def test_three_failures_in_a_row_send_requests_to_another_model_until_a_probe_succeeds(
    bench: Bench,
) -> None:
    first = (await bench.decide()).model_name
    assert first is not None
    for _ in range(3):
        with pytest.raises(ConnectionError), bench.balancer.request(first):
            raise ConnectionError
    other = await bench.decide()
    assert other.action is Action.DISPATCH
    assert other.model_name != first
    assert other.left_out[first].code == "breaker_open"
    assert (await bench.decide(model=first)).action is Action.HOLD
    assert (await bench.decide(model=first)).retry_in_ms == pytest.approx(5000)
    assert (await bench.decide(model=first, fallback=True)).code == "fallback"
    assert bench.balancer.models[first].breaker_open
    assert (await bench.later(5.0, model=first)).model_name == first
    with bench.balancer.request(first):
        probing = await bench.decide(model=first)
    assert probing.code == "breaker_open"
    status = bench.balancer.models[first]
    assert (status.breaker_open, status.failure_count, status.in_flight) == (False, 3, 0)


async def test_a_failed_probe_doubles_the_pause_up_to_five_minutes(bench: Bench) -> None:
    pauses = []
    for _ in range(3):
        bench.balancer.record_failure("bi-medix2")
    for _ in range(8):
        pause_ms = (await bench.decide(model="bi-medix2")).retry_in_ms
        assert pause_ms is not None
        pauses.append(round(pause_ms / 1000))
        bench.clock.now_s += pause_ms / 1000
        bench.balancer.record_failure("bi-medix2")
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]


async def test_failures_that_are_not_in_a_row_open_the_breaker_above_half_of_twenty(bench: Bench) -> None:
    pattern = ([False, False, True] * 7)[:20]
    for index, good in enumerate(pattern):
        assert not bench.balancer.models["bi-medix2"].breaker_open, index
        if good:
            bench.balancer.record_latency("bi-medix2", 100)
        else:
            bench.balancer.record_failure("bi-medix2")
    assert bench.balancer.models["bi-medix2"].breaker_open


async def test_failures_weigh_in_the_score_and_fade_within_minutes(bench: Bench) -> None:
    bench.balancer.record_failure("tiny-llama-1b")
    spoiled = (await bench.decide()).parts["tiny-llama-1b"].failures
    faded = (await bench.later(60.0)).parts["tiny-llama-1b"].failures
    assert [spoiled, faded] == pytest.approx([1 + 4 * 0.3, 1 + 4 * 0.15])


def test_latency_is_an_exponential_moving_average(bench: Bench) -> None:
    seen: list[float | None] = []
    for latency_ms in (1000, 2000, 3000, 1000, 1000, 11000):
        bench.balancer.record_latency("bi-medix2", latency_ms)
        seen.append(bench.balancer.models["bi-medix2"].avg_latency_ms)
    # A plain mean of the first five, then a fifth of the difference.
    assert seen == pytest.approx([1000, 1500, 2000, 1750, 1600, 3480])


async def test_learned_speed_replaces_the_table(bench: Bench) -> None:
    bench.balancer.record_latency("bi-medix2", 2500, output_tokens=101, prompt_tokens=100, first_token_ms=500)
    decision = await bench.decide(model="bi-medix2", max_tokens=100, prompt_tokens=200)
    assert decision.estimated_duration_ms == pytest.approx(1000 + 2000)
    with bench.balancer.request("openins-llama3-8b") as usage:
        bench.clock.now_s += 4.0
        usage.output_tokens = 40
    assert (await bench.decide(model="openins-llama3-8b", max_tokens=10)).estimated_duration_ms == 1000
    assert bench.balancer.models["openins-llama3-8b"].avg_latency_ms == pytest.approx(4000)


async def test_requests_in_flight_fill_slots_and_then_count_as_its_queue(bench: Bench) -> None:
    with bench.balancer.request("bi-medix2"):
        assert (await bench.decide(model="bi-medix2")).code == "model_busy"
        assert bench.balancer.models["bi-medix2"].queue_size == 0
        with bench.balancer.request("bi-medix2"):
            assert bench.balancer.models["bi-medix2"].queue_size == 1
    assert bench.balancer.models["bi-medix2"].in_flight == 0


async def test_a_cancelled_request_gives_its_slot_back_and_is_nobodys_failure(bench: Bench) -> None:
    entered = asyncio.Event()

    async def call() -> None:
        with bench.balancer.request("bi-medix2"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    status = bench.balancer.models["bi-medix2"]
    assert (status.in_flight, status.failure_count, status.avg_latency_ms) == (0, 0, None)


def test_requests_from_many_threads_leave_nothing_in_flight(bench: Bench) -> None:
    def work() -> None:
        for _ in range(200):
            with bench.balancer.request("bi-medix2"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.balancer.models["bi-medix2"].in_flight == 0


async def test_registering_again_replaces_and_keeps_what_was_learned(bench: Bench) -> None:
    bench.balancer.record_latency("bi-medix2", 700)
    bench.balancer.register_model("bi-medix2", LLAMA, 6.5, 9999)
    assert (await bench.decide(model="bi-medix2")).port == 9999
    assert bench.balancer.models["bi-medix2"].avg_latency_ms == 700
    bench.balancer.unregister_model("bi-medix2")
    assert set(bench.balancer.models) == {"tiny-llama-1b", "openins-llama3-8b"}


@pytest.mark.parametrize("figure", [-1.0, math.nan, math.inf])
def test_a_wrong_figure_is_refused(bench: Bench, figure: float) -> None:
    with pytest.raises(InvalidRequest, match="latency_ms"):
        bench.balancer.record_latency("bi-medix2", figure)
    with pytest.raises(InvalidRequest, match="interval_s"):
        LoadBalancer(bench.cards, interval_s=figure)
