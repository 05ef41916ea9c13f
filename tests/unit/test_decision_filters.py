"""The filter of routing: every reason for which a model can't take a request, with its sentence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from shared.decision.capacity import busy, limited, round_half_up
from shared.decision.routing import decide
from shared.decision.snapshot import Gpu, LeftOut, Model, Request, Snapshot
from shared.states import Action, Pressure, Residence, Thermal
from tests.unit.strategies import COLD, MB, PLAIN, TINY, named, snapshot

ANY = Request()
HOT = replace(COLD, thermal=Thermal.CRITICAL, temperature_c=86.0)
PRESSED = replace(COLD, pressure=Pressure.CRITICAL, effective_utilization=0.9, memory_used_mb=0.9 * 24 * MB)
FULL = replace(PRESSED, full=True, effective_utilization=0.96, memory_used_mb=0.96 * 24 * MB)
SECOND = replace(COLD, id="host/1")


def left_out(seen: Snapshot, request: Request = ANY, name: str = "plain") -> LeftOut:
    return decide(seen, request).left_out[name]


def at(residence: Residence) -> Model:
    return replace(PLAIN, residence=residence)


@pytest.mark.parametrize(
    ("model", "request_", "code", "words"),
    [
        (PLAIN, Request(model="other"), "not_serving", "the model 'other'"),
        (PLAIN, Request(agent_type="MedicalQA"), "not_serving", "the agent type 'MedicalQA'"),
        (PLAIN, Request(min_context_tokens=4097), "context_too_small", "4096 tokens is below the 4097"),
        (replace(PLAIN, breaker_open_for_ms=2500.0, failure_count=3), ANY,
         "breaker_open", "open (3 failures); it is probed in 2.5 s"),
        (replace(PLAIN, breaker_half_open=True, in_flight=1), ANY, "breaker_open", "one probe is under way"),
        (replace(PLAIN, saturated_for_ms=1500.0), ANY, "saturated", "asked again in 1.5 s"),
        (replace(PLAIN, name_unknown_for_ms=1500.0, upstream_name="org/x"), ANY,
         "name_unknown", "its server knows no model 'org/x'; it is asked again in 1.5 s"),
        (at(Residence.UNLOADED), ANY, "not_resident", "unloaded; it serves once it has been loaded"),
        (at(Residence.LOADING), ANY, "not_resident", "loading; it serves when that is done"),
        (at(Residence.DRAINING), ANY, "not_resident", "draining"),
        (at(Residence.UNLOADING), ANY, "not_resident", "unloading"),
        (at(Residence.SLEEPING), ANY, "not_resident", "sleeping; it serves once it has been woken"),
        (at(Residence.FAILED), ANY, "not_resident", "it has failed its last probe"),
        (replace(PLAIN, in_flight=4), ANY, "model_busy", "4 requests running or waiting and at most 4"),
        (replace(PLAIN, backend_running=3, backend_waiting=2), ANY, "model_busy", "it has 5 requests"),
        (replace(PLAIN, kv_use=0.9), ANY, "kv_full", "KV cache is 90 % full; it goes on when that falls"),
        (replace(PLAIN, samples=5, seconds_per_output_token=0.01),
         Request(max_tokens=300, deadline_in_ms=2000.0),
         "deadline", "takes about 3.0 s and the deadline is in 2.0 s"),
    ],
)  # fmt: skip
def test_a_model_is_left_out_with_code_and_numbers(
    model: Model, request_: Request, code: str, words: str
) -> None:
    # The other model can take all of these, so what is said of this one is the filter's own word.
    able = replace(named(PLAIN, "other"), agent_types=("Chat", "MedicalQA"), context_tokens=8192)
    decision = decide(snapshot(model, able), request_)
    assert decision.action is Action.DISPATCH
    assert decision.left_out["plain"].code == code
    assert words in decision.left_out["plain"].reason


def test_a_model_whose_claim_was_answered_busy_is_not_tried_again_in_this_snapshot() -> None:
    assert left_out(snapshot(PLAIN, busy=frozenset({"plain"}))).code == "claimed_busy"


@pytest.mark.parametrize("residence", [Residence.RESIDENT, Residence.UNKNOWN])
def test_a_resident_or_never_probed_model_is_let_through(residence: Residence) -> None:
    assert decide(snapshot(at(residence)), ANY).action is Action.DISPATCH


@pytest.mark.parametrize(
    "model",
    [
        replace(PLAIN, in_flight=3),
        replace(PLAIN, backend_running=3),
        replace(PLAIN, backend_waiting=3),
        replace(PLAIN, kv_use=0.899),
        replace(PLAIN, kv_use=math.nan),
        replace(PLAIN, samples=4, seconds_per_output_token=1.0),  # too little known to refuse by deadline
        replace(PLAIN, samples=9, seconds_per_output_token=0.01, avg_output_tokens=50.0),  # usually brief
    ],
)
def test_a_model_just_inside_every_bound_is_let_through(model: Model) -> None:
    assert decide(snapshot(model), Request(deadline_in_ms=1000.0)).action is Action.DISPATCH


def test_a_prompt_longer_than_the_context_is_not_refused_by_our_estimate() -> None:
    assert decide(snapshot(PLAIN), Request(prompt_tokens=100_000)).action is Action.DISPATCH


def test_at_critical_pressure_only_the_smallest_resident_model_of_the_gpu_serves() -> None:
    decision = decide(snapshot(PLAIN, TINY, gpus=(PRESSED,)), ANY)
    assert decision.model == TINY
    assert decision.left_out["plain"].code == "memory_critical"
    assert decision.left_out["plain"].reason == (
        "GPU host/0 is at critical memory pressure (90 % of 24.0 GB used), where only its smallest model "
        "tiny-llama-1b serves; it goes on when use falls below 82 % for two samples"
    )


@pytest.mark.parametrize(
    ("models", "serving"),
    [
        ((PLAIN, replace(TINY, residence=Residence.UNLOADED)), "plain"),  # an unloaded one is not on the card
        ((PLAIN, named(PLAIN, "aaa")), "aaa"),  # equal sizes: by name
        ((PLAIN, replace(TINY, vram_gb=None)), "plain"),  # unknown size never counts as smallest
        ((PLAIN, replace(TINY, gpus=("host/1",))), "tiny-llama-1b"),  # another card's rules
        ((PLAIN, replace(TINY, residence=Residence.UNKNOWN)), "tiny-llama-1b"),
    ],
)
def test_the_smallest_model_is_counted_per_gpu_and_among_those_that_are_awake(
    models: tuple[Model, ...], serving: str
) -> None:
    decision = decide(snapshot(*models, gpus=(PRESSED, SECOND)), ANY)
    assert serving in decision.parts


def test_a_full_gpu_admits_nothing_not_even_its_smallest_model() -> None:
    found = left_out(snapshot(PLAIN, gpus=(FULL,)))
    assert found.code == "memory_full"
    assert "(96 % of 24.0 GB used); it goes on when use falls below 92 % for two samples" in found.reason
    beside_smaller = left_out(
        snapshot(PLAIN, TINY, gpus=(FULL,))
    )  # 92 % would let only the smaller one go on
    assert beside_smaller.code == "memory_full"
    assert beside_smaller.reason.endswith("it goes on when use falls below 82 % for two samples")


def test_a_model_over_two_gpus_takes_the_worse_of_them() -> None:
    wide = replace(PLAIN, gpus=("host/0", "host/1"))
    for bad, code in ((FULL, "memory_full"), (HOT, "heat_critical")):
        assert left_out(snapshot(wide, gpus=(bad, SECOND))).code == code
        assert left_out(snapshot(wide, gpus=(replace(bad, id="host/1"), COLD))).code == code
    throttling = replace(SECOND, thermal=Thermal.THROTTLING)
    assert decide(snapshot(wide, gpus=(COLD, throttling)), ANY).limit == 2


def test_critical_heat_stops_new_work_and_says_when_it_goes_on() -> None:
    found = left_out(snapshot(PLAIN, gpus=(HOT,)))
    assert found.code == "heat_critical"
    assert found.reason == (
        "GPU host/0 is at critical heat (86 C): what runs ends, nothing new starts; it goes on when it has "
        "cooled to 82 C for two samples"
    )


@pytest.mark.parametrize("gpu", [PRESSED, FULL, HOT])
def test_a_level_whose_readings_stopped_says_that_the_monitor_must_report(gpu: Gpu) -> None:
    silent = replace(gpu, sample_age_ms=None, effective_utilization=None, temperature_c=None)
    found = left_out(snapshot(PLAIN, TINY, gpus=(silent,)))
    assert "unknown" in found.reason
    assert found.reason.endswith("; its readings have stopped, so its monitor must report first")
    stale = left_out(snapshot(PLAIN, TINY, gpus=(replace(gpu, sample_age_ms=42_000.0),)))
    assert "; its readings have stopped (last known 42 s ago), so its monitor must report" in stale.reason


def test_use_beside_a_vllm_pool_is_not_shown_as_use_of_the_whole_card() -> None:
    beside_pool = replace(PRESSED, memory_used_mb=23.8 * MB)
    assert (
        "(90 % of its memory outside vLLM pools used)"
        in left_out(snapshot(PLAIN, TINY, gpus=(beside_pool,))).reason
    )


@pytest.mark.parametrize(
    ("slots", "factor", "limit"),
    [
        (4, 1.0, 4),
        (4, 0.9, 4),  # 3.6
        (3, 0.5, 2),  # 1.5 rounds up, where Python's round would too
        (5, 0.5, 3),  # 2.5 rounds up, where Python's round goes down
        (5, 0.9, 5),  # 4.5
        (1, 0.5, 1),
        (1, 0.1, 1),  # never 0 except at factor 0
        (64, 0.0, 0),
    ],
)
def test_limits_round_half_up_and_stay_at_least_one(slots: int, factor: float, limit: int) -> None:
    assert limited(slots, factor) == limit


def test_rounding_halves_goes_up() -> None:
    assert [round_half_up(value) for value in (0.5, 1.5, 2.5, 2.49)] == [1, 2, 3, 2]


@pytest.mark.parametrize(
    ("thermal", "limit"),
    [(Thermal.UNKNOWN, 4), (Thermal.NORMAL, 4), (Thermal.WARNING, 4), (Thermal.THROTTLING, 2)],
)
def test_heat_lowers_the_limit_of_model_and_gpu(thermal: Thermal, limit: int) -> None:
    gpu = replace(COLD, thermal=thermal)
    decision = decide(snapshot(PLAIN, gpus=(gpu,)), ANY)
    assert (decision.limit, dict(decision.gpu_limits)) == (limit, {"host/0": limit})
    busy = decide(snapshot(replace(PLAIN, in_flight=limit), gpus=(gpu,)), ANY)
    assert busy.code == "model_busy"
    assert ("4 slots, reduced by throttling heat of GPU host/0" in busy.reason) is (limit < 4)


def test_a_gpu_limits_the_requests_of_all_its_models_together() -> None:
    gpu = replace(COLD, thermal=Thermal.THROTTLING, in_flight=4)
    crowd = [replace(named(PLAIN, name), in_flight=flying) for name, flying in (("a", 0), ("b", 0))]
    found = left_out(snapshot(*crowd, gpus=(gpu,)), name="a")
    assert found.code == "gpu_busy"
    assert "4 of at most 4 requests in flight (8 slots, reduced by throttling heat)" in found.reason
    room_left = replace(gpu, in_flight=3)
    assert decide(snapshot(*crowd, gpus=(room_left,)), ANY).gpu_limits == {"host/0": 4}


def test_models_that_are_not_on_the_gpu_lend_it_no_slots() -> None:
    gone = replace(named(PLAIN, "gone"), residence=Residence.UNLOADED)
    assert decide(snapshot(PLAIN, gone), ANY).gpu_limits == {"host/0": 4}
    ending = replace(gone, residence=Residence.FAILED, in_flight=1)  # its requests are still counted
    assert decide(snapshot(PLAIN, ending), ANY).gpu_limits == {"host/0": 8}


def test_a_half_open_breaker_lets_one_probe_through() -> None:
    half_open = replace(PLAIN, breaker_half_open=True)
    assert decide(snapshot(half_open), ANY).limit == 1
    # Requests of others on that backend don't keep the probe from it.
    assert decide(snapshot(replace(half_open, backend_running=2)), ANY).action is Action.DISPATCH
    assert left_out(snapshot(replace(half_open, in_flight=1))).code == "breaker_open"


@pytest.mark.parametrize(
    ("worse", "code"),
    [
        (replace(PLAIN, context_tokens=1), "context_too_small"),
        (replace(PLAIN, breaker_open_for_ms=1.0), "breaker_open"),
        (replace(PLAIN, saturated_for_ms=1.0), "saturated"),
        (replace(PLAIN, name_unknown_for_ms=1.0), "name_unknown"),
        (replace(PLAIN, residence=Residence.FAILED), "not_resident"),
    ],
)
def test_the_first_obstacle_in_the_order_gives_the_code(worse: Model, code: str) -> None:
    able = named(PLAIN, "able")
    also_busy_and_full = replace(worse, in_flight=9, kv_use=1.0, gpus=("host/1",))
    seen = snapshot(also_busy_and_full, able, gpus=(COLD, replace(FULL, id="host/1")))
    assert left_out(seen, Request(min_context_tokens=2)).code == code


@pytest.mark.parametrize(
    ("in_flight", "running", "waiting", "ours_then", "expected"),
    [
        (3, None, None, None, 3),
        (0, 2, 1, None, 3),
        (2, 2, 0, 2, 2),
        (0, 2, 0, 2, 0),  # ours have ended since the probe: the slots are free now
        (1, 3, 1, 2, 3),  # two of the four were not ours
        (4, 1, 0, 3, 4),  # ours started since the probe
    ],
)
def test_busy_is_ours_now_and_what_others_had_at_the_last_probe(
    in_flight: int, running: int | None, waiting: int | None, ours_then: int | None, expected: int
) -> None:
    probed = replace(
        PLAIN,
        in_flight=in_flight,
        backend_running=running,
        backend_waiting=waiting,
        probe_in_flight=ours_then,
    )

    assert busy(probed) == expected
