"""The in-process balancer's GPUs: memory, heat, unknown readings, sampling, the rolling window."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from shared.balancer import BackendType, RoutingDecision
from shared.config import MemoryThresholds, ThermalThresholds
from shared.gpu.source import Cause, GpuReading, GpuUnavailable
from shared.states import Action, Pressure, Thermal
from tests.kit.balancer import Bench, card, specified
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

LLAMA, VLLM = BackendType.LLAMA_CPP, BackendType.VLLM


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = specified()
    yield made
    await made.balancer.aclose()


async def test_at_critical_memory_pressure_only_the_smallest_model_serves_and_then_requests_wait() -> None:
    made = Bench(card(0.9))
    made.register_specified()
    decision = await made.decide(agent_type="Chat")
    assert decision.model_name == "tiny-llama-1b"
    assert {name: left.code for name, left in decision.left_out.items()} == {
        "bi-medix2": "memory_critical",
        "openins-llama3-8b": "memory_critical",
    }
    with made.balancer.request("tiny-llama-1b"):
        held = await made.decide(agent_type="Chat")
    assert held.action is Action.HOLD
    assert (held.model_name, held.port, held.backend, held.url) == (None, None, None, None)
    assert "critical memory pressure" in held.left_out["bi-medix2"].reason


async def test_full_memory_holds_everything_and_the_examples_format_string_still_works() -> None:
    made = Bench(card(0.96))
    made.register_specified()
    held = await made.decide(agent_type="Chat", prefer_llama_cpp=True, min_context_tokens=2048)
    assert (held.action, held.code) == (Action.HOLD, "memory_full")
    assert "96 % of 24.0 GB used" in held.reason
    assert math.isnan(held.estimated_duration_ms)
    assert f"Est. Duration: {held.estimated_duration_ms:.0f}ms" == "Est. Duration: nanms"


async def test_the_level_falls_after_two_samples_below_the_margin_and_not_before() -> None:
    made = Bench(card(0.96))
    made.register_specified()
    assert (await made.decide()).action is Action.HOLD
    assert (await made.later(1.0, card(0.3))).action is Action.HOLD
    assert (await made.later(1.0)).action is Action.DISPATCH
    assert made.balancer.gpus["localhost/0"].pressure is Pressure.LOW


async def test_critical_heat_holds_and_throttling_halves_the_slots() -> None:
    made = Bench(card(0.3, 86.0))
    made.register_specified(slots=4)
    held = await made.decide()
    assert (held.action, held.code) == (Action.HOLD, "heat_critical")
    assert "86 C" in held.reason
    await made.later(1.0, card(0.3, 81.0))
    cooler = await made.later(1.0, card(0.3, 81.0))
    assert made.balancer.gpus["localhost/0"].thermal is Thermal.THROTTLING
    assert cooler.parts["bi-medix2"].limit == 2


async def test_a_throttled_card_counts_the_requests_of_all_its_models(bench: Bench) -> None:
    bench.cards.readings = [card(0.3, 81.0)]
    with bench.balancer.request("tiny-llama-1b"), bench.balancer.request("bi-medix2"):
        held = await bench.decide()
    assert (held.action, held.left_out["openins-llama3-8b"].code) == (Action.HOLD, "gpu_busy")


async def test_thresholds_are_configurable() -> None:
    made = Bench(
        card(0.3, 60.0),
        memory_thresholds=MemoryThresholds(low=0.1, normal=0.15, high=0.2, critical=0.25),
        thermal_thresholds=ThermalThresholds(normal=30, warning=40, throttling=50),
    )
    made.register_specified()
    assert (await made.decide()).code == "memory_full"
    gpu = made.balancer.gpus["localhost/0"]
    assert (gpu.pressure, gpu.thermal) == (Pressure.CRITICAL, Thermal.CRITICAL)


async def test_a_vllm_pool_is_a_partition_and_no_memory_pressure_already_at_the_first_reading() -> None:
    made = Bench(card(0.92))
    made.balancer.register_model("big", VLLM, 20.0, 8000, slots=8)
    assert (await made.decide()).action is Action.DISPATCH
    assert made.balancer.gpus["localhost/0"].effective_utilization == pytest.approx(2.08 / 4)


async def test_without_a_gpu_memory_and_heat_are_unknown_and_said_so() -> None:
    made = Bench()
    made.cards.error = GpuUnavailable(Cause.LIBRARY_MISSING, "no driver here")
    made.register_specified()
    decision = await made.decide(agent_type="Chat")
    assert decision.action is Action.DISPATCH
    assert "memory and heat are unknown" in decision.reason
    assert made.balancer.gpu_trouble == "library_missing: no driver here"
    assert (dict(made.balancer.gpus), made.balancer.samples) == ({}, ())


async def test_readings_that_stop_leave_the_last_level_standing_and_say_so(bench: Bench) -> None:
    bench.cards.readings = [card(0.96)]
    assert (await bench.decide()).code == "memory_full"
    bench.cards.error = GpuUnavailable(Cause.NO_DRIVER, "gone")
    held = await bench.later(60.0)
    assert held.code == "memory_full"
    assert "its readings have stopped" in held.reason
    assert bench.balancer.gpus["localhost/0"].memory_used_mb is None


async def test_an_unknown_reading_of_a_card_is_unknown_and_not_zero(bench: Bench) -> None:
    bench.cards.readings = [GpuReading(0)]
    decision = await bench.decide()
    assert "memory and heat of GPU localhost/0 are unknown" in decision.reason


async def test_a_model_is_placed_on_the_card_that_it_names_else_on_the_only_one() -> None:
    made = Bench(card(0.96, index=0), card(0.3, index=1))
    made.balancer.register_model("on-first", LLAMA, 4.0, 1001, gpu="GPU-0")
    made.balancer.register_model("on-second", LLAMA, 4.0, 1002, gpu=1)
    made.balancer.register_model("nowhere", LLAMA, 4.0, 1003)
    full, free, unknown = [await made.decide(model=name) for name in ("on-first", "on-second", "nowhere")]
    assert (full.code, free.action, unknown.action) == ("memory_full", Action.DISPATCH, Action.DISPATCH)
    assert "GPU localhost/1 has low memory pressure" in free.reason
    assert "no GPU reading" in unknown.reason


async def test_a_model_on_another_machine_is_not_judged_by_the_card_of_this_one(bench: Bench) -> None:
    bench.cards.readings = [card(0.96)]
    bench.balancer.register_model("there", VLLM, 20.0, url="http://192.0.2.7:8000")
    bench.balancer.register_model("here", LLAMA, 2.0, url="http://127.0.0.1:8000/v1/")
    assert (await bench.decide(model="there")).url == "http://192.0.2.7:8000"
    assert (await bench.decide(model="here")).code == "memory_full"


async def test_gpus_are_read_once_per_interval_however_many_decisions_there_are(bench: Bench) -> None:
    await asyncio.gather(*(bench.decide() for _ in range(20)))
    await bench.later(0.9)
    assert bench.cards.reads == 1
    await bench.later(0.2)
    assert bench.cards.reads == 2


async def test_the_window_keeps_the_last_hundred_samples_of_each_gpu(bench: Bench) -> None:
    for step in range(130):
        await bench.later(1.0, card(0.2 + step / 1000), card(0.4, index=1))
    first = [sample for sample in bench.balancer.samples if sample.gpu == "localhost/0"]
    assert (len(first), len(bench.balancer.samples)) == (100, 200)
    shares = [sample.effective_utilization for sample in first]
    assert shares == pytest.approx([0.2 + step / 1000 for step in range(30, 130)])


async def test_a_driver_that_hangs_delays_decisions_by_a_second_at_most_and_is_asked_once(
    bench: Bench,
) -> None:
    await bench.decide()
    bench.cards.answers.clear()
    with Stopwatch() as watch:
        decision = await bench.later(1.0)
        assert watch.elapsed_s + watch.away_s > 0.9
        assert watch.elapsed_s < 3
        watch.restart()
        await bench.later(1.0)
        assert watch.elapsed_s < 0.5
    assert "low memory pressure" in decision.reason
    assert bench.cards.reads == 2
    bench.cards.answers.set()


async def test_the_first_decision_waits_for_a_driver_that_takes_seconds_to_wake_its_cards(
    bench: Bench,
) -> None:
    bench.cards.answers.clear()
    deciding = asyncio.create_task(bench.decide())
    done, _ = await asyncio.wait({deciding}, timeout=1.5)
    assert not done
    bench.cards.answers.set()
    assert "low memory pressure" in (await deciding).reason


async def test_a_caller_that_gives_up_does_not_take_the_reading_from_the_others(bench: Bench) -> None:
    bench.cards.answers.clear()
    hasty, patient = (asyncio.create_task(bench.decide()) for _ in range(2))
    await wait_until(lambda: bench.cards.reads, "a reading has begun")
    hasty.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hasty
    bench.cards.answers.set()
    assert "low memory pressure" in (await patient).reason
    assert bench.cards.reads == 1


async def test_monitoring_samples_in_the_background_and_stops_with_its_block(bench: Bench) -> None:
    async with bench.balancer.monitoring(0.01):
        await wait_until(lambda: len(bench.balancer.samples) >= 5, "five samples are taken")
        before = bench.cards.reads
        await bench.decide()
        assert bench.cards.reads - before <= 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "gpu-watch"]
    bench.cards.error = GpuUnavailable(Cause.NO_DRIVER, "gone")
    async with bench.balancer.monitoring(0.01):
        await wait_until(lambda: bench.balancer.gpu_trouble, "the trouble is noticed")


def test_one_balancer_serves_several_event_loops_one_after_the_other() -> None:
    made = Bench(card())
    made.register_specified()

    async def once() -> RoutingDecision:
        async with made.balancer.monitoring(5.0):
            return await made.decide()

    for _ in range(3):
        made.clock.now_s += 100
        assert "low memory pressure" in asyncio.run(once()).reason
    assert made.cards.reads >= 3


async def test_closing_lets_go_of_the_source() -> None:
    made = Bench(card())
    await made.balancer.aclose()
    assert made.cards.closed


def test_a_reading_that_an_abandoned_event_loop_left_behind_holds_up_no_later_one() -> None:
    made = Bench(card())
    made.register_specified()
    made.cards.answers.clear()
    abandoned = asyncio.new_event_loop()

    async def give_up() -> None:
        deciding = asyncio.create_task(made.decide())
        await wait_until(lambda: made.cards.reads, "a reading has begun")
        deciding.cancel()
        await asyncio.wait({deciding})

    abandoned.run_until_complete(give_up())
    # Held on to, or the garbage collector may take the reading that waits for it, and its task with it.
    unanswered, made.cards.answers = made.cards.answers, asyncio.Event()
    made.cards.answers.set()
    made.clock.now_s += 10
    assert "low memory pressure" in asyncio.run(made.decide()).reason

    left = asyncio.all_tasks(abandoned)
    assert not unanswered.is_set()
    for task in left:
        task.cancel()
    abandoned.run_until_complete(asyncio.wait(left))
    abandoned.close()
