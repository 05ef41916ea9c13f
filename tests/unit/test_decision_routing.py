"""Whole decisions: dispatch with its reason, named models and fallback, holds, rejects."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.decision.routing import decide
from shared.decision.snapshot import Gpu, Model, Request
from shared.states import Action, Pressure, Residence, Thermal
from tests.unit.strategies import COLD, MEDIX, OPENINS, PLAIN, TINY, named, snapshot

PRESSED = replace(COLD, pressure=Pressure.CRITICAL, effective_utilization=0.9, memory_used_mb=0.9 * 24576)
HOT = replace(COLD, thermal=Thermal.CRITICAL, temperature_c=88.0)
TRIO = (TINY, MEDIX, OPENINS)


def full(model: Model) -> Model:
    return replace(model, in_flight=model.slots)


def test_a_dispatch_says_why_in_one_sentence() -> None:
    decision = decide(snapshot(*TRIO), Request(agent_type="Chat"))
    assert (decision.action, decision.code, decision.model) == (Action.DISPATCH, "chosen", TINY)
    assert decision.reason == (
        "tiny-llama-1b (llama_cpp) has the lowest score of 3 models (0.25, then bi-medix2 with 0.33): 0 of 4 "
        "slots busy, about 200 tokens/s; GPU host/0 has normal memory pressure (60 % of 24.0 GB used) and "
        "normal heat (49 C)"
    )
    assert decision.estimated_duration_ms == pytest.approx(2560)
    assert (decision.limit, decision.gpu_limits) == (4, {"host/0": 12})
    assert set(decision.parts) == {model.name for model in TRIO}
    assert decision.left_out == {}


def test_the_only_candidate_and_the_winner_of_a_tie_are_called_so() -> None:
    assert "is the only model that can take it now (score 0.25)" in decide(snapshot(PLAIN), Request()).reason
    close = replace(named(PLAIN, "close"), slots=100, in_flight=20, kv_use=0.1)
    best = replace(named(PLAIN, "best"), slots=100, in_flight=19)
    assert (
        "close (llama_cpp) is within 5 % of the lowest score (0.21, best has 0.20) and ahead by KV headroom, "
        "temperature or name"
    ) in decide(snapshot(best, close), Request()).reason


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (Gpu("host/0"), "memory and heat of GPU host/0 are unknown"),
        (replace(COLD, thermal=Thermal.UNKNOWN), "(60 % of 24.0 GB used) and unknown heat"),
        (replace(COLD, pressure=Pressure.UNKNOWN), "has unknown memory pressure and normal heat (49 C)"),
        (replace(COLD, temperature_c=None), "normal heat (temperature unknown)"),
        (replace(COLD, effective_utilization=None), "normal memory pressure (use unknown)"),
        (replace(COLD, sample_age_ms=None), "normal heat (49 C), as last read"),
        (replace(COLD, sample_age_ms=42_000.0), "normal heat (49 C), last known 42 s ago"),
        (replace(COLD, sample_age_ms=None, level_age_ms=600_000.0), "heat (49 C), last known 600 s ago"),
        (replace(COLD, memory_total_mb=None), "(60 % of its memory used)"),
    ],
)
def test_a_dispatch_says_what_is_unknown_of_its_gpu(gpu: Gpu, words: str) -> None:
    decision = decide(snapshot(PLAIN, gpus=(gpu,)), Request())
    assert decision.action is Action.DISPATCH
    assert words in decision.reason


def test_a_model_without_gpu_reading_goes_by_load_and_failures_and_says_so() -> None:
    decision = decide(snapshot(replace(PLAIN, gpus=()), gpus=()), Request())
    assert "no GPU reading, memory and heat are unknown and only load and failures count" in decision.reason
    assert decision.gpu_limits == {}


def test_a_gpu_that_only_a_model_names_is_unknown_but_still_limits() -> None:
    decision = decide(snapshot(replace(PLAIN, gpus=("far/7",))), Request())
    assert decision.gpu_limits == {"far/7": 4}
    assert "memory and heat of GPU far/7 are unknown" in decision.reason


@pytest.mark.parametrize(
    ("agent_type", "serving"),
    [
        ("Chat", {"tiny-llama-1b", "bi-medix2", "openins-llama3-8b"}),
        ("MedicalQA", {"bi-medix2"}),
        ("Insurance", {"openins-llama3-8b"}),
        (None, {"tiny-llama-1b", "bi-medix2", "openins-llama3-8b"}),
    ],
)
def test_an_agent_type_goes_to_the_models_that_list_it(agent_type: str | None, serving: set[str]) -> None:
    assert set(decide(snapshot(*TRIO), Request(agent_type=agent_type)).parts) == serving


def test_a_model_without_agent_types_takes_any() -> None:
    generalist = replace(named(PLAIN, "any"), agent_types=())
    assert decide(snapshot(TINY, generalist), Request(agent_type="Poetry")).model == generalist


def test_replicas_of_one_public_name_share_its_requests() -> None:
    left = replace(named(PLAIN, "left"), serves=("llama",), in_flight=2)
    right = replace(named(PLAIN, "right"), serves=("llama", "best"), in_flight=1)
    seen = snapshot(left, right, TINY)
    assert set(decide(seen, Request(model="llama", fallback=False)).parts) == {"left", "right"}
    assert decide(seen, Request(model="llama", fallback=False)).model == right
    assert set(decide(seen, Request(model="best", fallback=False)).parts) == {"right"}
    assert decide(seen, Request(model="left", fallback=False)).code == "unknown_model"


def test_a_named_model_is_taken_even_where_others_score_better() -> None:
    busy = replace(MEDIX, in_flight=3)
    for fallback in (True, False):
        decision = decide(snapshot(TINY, busy), Request(model="bi-medix2", fallback=fallback))
        assert (decision.model, decision.code) == (busy, "chosen")


def test_without_fallback_a_request_waits_for_the_model_it_names() -> None:
    decision = decide(snapshot(TINY, full(MEDIX)), Request(model="bi-medix2", fallback=False))
    assert (decision.action, decision.code) == (Action.HOLD, "model_busy")
    assert decision.reason == (
        "bi-medix2 waits: it has 4 requests running or waiting and at most 4 at once; it goes on when one of "
        "them ends"
    )
    assert decision.left_out["tiny-llama-1b"].code == "not_serving"


def test_with_fallback_another_model_serves_and_the_reason_says_for_whom() -> None:
    decision = decide(snapshot(TINY, full(MEDIX)), Request(model="bi-medix2", fallback=True))
    assert (decision.action, decision.code, decision.model) == (Action.DISPATCH, "fallback", TINY)
    assert decision.reason.startswith(
        "bi-medix2 was asked for and waits: it has 4 requests running or waiting and at most 4 at once; it "
        "goes on when one of them ends; meanwhile tiny-llama-1b (llama_cpp) is the only model"
    )
    assert decision.left_out["bi-medix2"].code == "model_busy"


def test_fallback_stays_within_the_agent_type() -> None:
    request = Request(model="bi-medix2", agent_type="MedicalQA", fallback=True)
    decision = decide(snapshot(TINY, OPENINS, full(MEDIX)), request)
    assert (decision.action, decision.code) == (Action.HOLD, "model_busy")
    second = replace(named(MEDIX, "bi-medix3"), tokens_per_second=1.0)
    assert decide(snapshot(TINY, OPENINS, full(MEDIX), second), request).model == second


def test_a_wish_that_cannot_be_met_waits_for_its_own_model_by_name() -> None:
    decision = decide(snapshot(full(TINY), MEDIX, gpus=(HOT,)), Request(model="bi-medix2"))
    assert decision.code == "heat_critical"
    assert decision.reason.startswith("bi-medix2 waits: GPU host/0 is at critical heat (88 C)")
    assert decision.reason.endswith("; also kept back: tiny-llama-1b (heat_critical)")


def test_a_wish_whose_own_model_is_too_small_for_it_waits_for_another() -> None:
    wide = full(replace(named(PLAIN, "wide"), context_tokens=32_768))
    decision = decide(snapshot(TINY, wide), Request(model="tiny-llama-1b", min_context_tokens=8192))
    assert (decision.action, decision.code) == (Action.HOLD, "model_busy")
    assert decision.reason.startswith("wide waits: ")


def test_a_hold_at_critical_pressure_names_cause_and_remedy() -> None:
    decision = decide(snapshot(*TRIO, gpus=(PRESSED,)), Request(model="bi-medix2", fallback=False))
    assert (decision.action, decision.code) == (Action.HOLD, "memory_critical")
    assert decision.reason == (
        "bi-medix2 waits: GPU host/0 is at critical memory pressure (90 % of 24.0 GB used), where only its "
        "smallest model tiny-llama-1b serves; it goes on when use falls below 82 % for two samples"
    )
    assert decision.retry_in_ms is None


BY_NEARNESS = (
    full(PLAIN),
    replace(PLAIN, kv_use=0.95),
    replace(PLAIN, saturated_for_ms=500.0),
    replace(PLAIN, breaker_open_for_ms=500.0),
    replace(PLAIN, gpus=("hot/0",)),
    replace(PLAIN, gpus=("pressed/0",)),
    replace(PLAIN, gpus=("full/0",)),
    replace(PLAIN, samples=5, seconds_per_output_token=10.0),
    replace(PLAIN, residence=Residence.LOADING),
    replace(PLAIN, residence=Residence.FAILED),
    replace(PLAIN, context_tokens=1),
)


@pytest.mark.parametrize("index", range(len(BY_NEARNESS) - 1))
def test_a_hold_is_explained_by_the_obstacle_that_passes_soonest(index: int) -> None:
    near, far = (
        replace(BY_NEARNESS[index + step], name=name, serves=(name,)) for step, name in ((0, "z"), (1, "a"))
    )
    smallest = replace(
        named(PLAIN, "s"), gpus=("pressed/0",), vram_gb=0.1, in_flight=4, agent_types=("Else",)
    )
    gpus = (
        COLD,
        replace(HOT, id="hot/0"),
        replace(PRESSED, id="pressed/0"),
        replace(PRESSED, id="full/0", full=True),
    )
    request = Request(agent_type="Chat", deadline_in_ms=60_000.0, min_context_tokens=2)
    decision = decide(snapshot(near, far, smallest, gpus=gpus), request)
    assert decision.action is Action.HOLD
    assert decision.reason.startswith("z waits: ")
    assert decision.code == decision.left_out["z"].code


def test_equal_obstacles_are_explained_by_the_one_that_ends_first() -> None:
    later, sooner = (
        replace(named(PLAIN, name), breaker_open_for_ms=ms) for name, ms in (("a", 9000.0), ("b", 2000.0))
    )
    decision = decide(snapshot(later, sooner), Request())
    assert decision.reason.startswith("b waits: ")
    assert decision.retry_in_ms == 2000.0


def test_a_hold_says_when_to_ask_again_where_something_tells() -> None:
    saturated = replace(named(PLAIN, "b"), saturated_for_ms=700.0)
    assert decide(snapshot(full(PLAIN), saturated), Request()).retry_in_ms == 700.0
    assert decide(snapshot(full(PLAIN)), Request()).retry_in_ms is None
    too_small = replace(saturated, context_tokens=1)  # its pause is none of this request's business
    assert decide(snapshot(full(PLAIN), too_small), Request(min_context_tokens=2)).retry_in_ms is None


def test_many_models_kept_back_are_not_all_listed() -> None:
    models = [full(named(PLAIN, f"m{index}")) for index in range(6)]
    reason = decide(snapshot(*models), Request()).reason
    assert reason.endswith("also kept back: m1 (model_busy), m2 (model_busy), m3 (model_busy) and 2 more")


def test_an_unknown_model_is_rejected_with_the_names_there_are() -> None:
    for fallback in (True, False):
        decision = decide(snapshot(*TRIO), Request(model="gpt-9", fallback=fallback))
        assert (decision.action, decision.code) == (Action.REJECT, "unknown_model")
        assert decision.reason == (
            "no model answers to 'gpt-9'; known are bi-medix2, openins-llama3-8b, tiny-llama-1b: name one of "
            "them, or register it by POST /v1/gpu/models"
        )
        assert {out.code for out in decision.left_out.values()} == {"not_serving"}


def test_a_long_list_of_known_names_is_cut() -> None:
    models = [named(PLAIN, f"m{index:02}") for index in range(14)]
    reason = decide(snapshot(*models), Request(model="x")).reason
    assert "m10, m11 and 2 more: name one" in reason


@pytest.mark.parametrize("model", [None, "tiny-llama-1b"])
def test_an_unknown_agent_type_is_rejected_with_the_list(model: str | None) -> None:
    decision = decide(snapshot(*TRIO), Request(model=model, agent_type="Poetry"))
    assert (decision.action, decision.code) == (Action.REJECT, "unknown_agent_type")
    assert "known are Chat, Insurance, MedicalQA: name one of them" in decision.reason


@pytest.mark.parametrize(
    "request_",
    [
        Request(min_context_tokens=5000),
        Request(model="tiny-llama-1b", min_context_tokens=5000),
        Request(model="tiny-llama-1b", min_context_tokens=5000, fallback=False),
        Request(agent_type="MedicalQA", min_context_tokens=5000),
    ],
)
def test_a_context_that_no_model_has_is_rejected(request_: Request) -> None:
    busy_and_gone = full(replace(MEDIX, residence=Residence.FAILED))
    decision = decide(snapshot(TINY, busy_and_gone, OPENINS), request_)
    assert (decision.action, decision.code) == (Action.REJECT, "context_too_small")
    assert "min_context_tokens 5000 is more than any model that may serve this has" in decision.reason
    assert "with 4096); ask for less" in decision.reason


def test_a_context_that_only_a_forbidden_fallback_has_is_rejected() -> None:
    wide = replace(named(PLAIN, "wide"), context_tokens=32_768)
    request = Request(model="tiny-llama-1b", min_context_tokens=8192, fallback=False)
    decision = decide(snapshot(TINY, wide), request)
    assert (decision.action, decision.code) == (Action.REJECT, "context_too_small")
    assert (decision.left_out["tiny-llama-1b"].code, decision.left_out["wide"].code) == (
        "context_too_small",
        "not_serving",
    )


@pytest.mark.parametrize("request_", [Request(), Request(model="tiny-llama-1b"), Request(agent_type="Chat")])
def test_an_empty_registry_makes_requests_wait_until_a_model_is_registered(request_: Request) -> None:
    decision = decide(snapshot(), request_)
    assert (decision.action, decision.code) == (Action.HOLD, "not_serving")
    assert "no model is registered yet; it goes on when one is" in decision.reason


def test_a_context_that_is_not_known_yet_holds_a_request_instead_of_refusing_it() -> None:
    unprobed = replace(PLAIN, context_tokens=2048, context_known=False)
    asking = Request(min_context_tokens=6000)

    decision = decide(snapshot(unprobed), asking)

    assert (decision.action, decision.code) == (Action.HOLD, "context_unknown")
    assert decide(snapshot(replace(unprobed, context_known=True)), asking).action is Action.REJECT
