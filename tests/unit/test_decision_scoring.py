"""The score of routing: each factor by itself, ties, the order that the ranking shows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.decision.routing import decide, rank
from shared.decision.snapshot import Model, Part, Request
from shared.states import BackendType, Mode, Pressure, Thermal
from tests.unit.strategies import COLD, MEDIX, OPENINS, PLAIN, PROPERTY, TINY, named, snapshot

A, B, C = (named(PLAIN, name) for name in "abc")
VLLM = replace(B, backend=BackendType.VLLM)
SECOND = replace(COLD, id="host/1")


def parts(
    *models: Model, request: Request | None = None, pressure: Pressure = Pressure.NORMAL
) -> dict[str, Part]:
    gpu = replace(COLD, pressure=pressure)
    return dict(decide(snapshot(*models, gpus=(gpu,)), request or Request()).parts)


@pytest.mark.parametrize(
    ("in_flight", "slots", "load"), [(0, 4, 0.25), (3, 4, 1.0), (0, 1, 1.0), (5, 8, 0.75)]
)
def test_load_is_the_share_of_slots_in_use_with_this_request(in_flight: int, slots: int, load: float) -> None:
    part = parts(replace(A, in_flight=in_flight, slots=slots))["a"]
    assert (part.load, part.busy, part.limit) == (load, in_flight, slots)


def test_speed_is_relative_to_the_fastest_candidate_and_bounded() -> None:
    models = (
        replace(A, tokens_per_second=150.0),
        replace(B, tokens_per_second=100.0),
        replace(C, tokens_per_second=1.0),
    )
    scored = parts(*models)
    assert [scored[name].speed for name in "abc"] == [1.0, pytest.approx(1.5), 3.0]


def test_a_long_prompt_counts_in_the_speed() -> None:
    slow_prefill = replace(B, seconds_per_prompt_token=0.001)
    request = Request(prompt_tokens=1500, max_tokens=150)  # 1 s of output, 1.5 s of prefill
    assert parts(A, slow_prefill, request=request)["b"].speed == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("ema", "factor"), [(0.0, 1.0), (0.5, 3.0), (1.0, 5.0), (7.0, 5.0), (-1.0, 1.0), (math.nan, 5.0)]
)
def test_failures_weigh_up_to_five_times(ema: float, factor: float) -> None:
    assert parts(replace(A, failure_ema=ema))["a"].failures == factor


@pytest.mark.parametrize(
    ("agent_types", "asked", "factor"),
    [
        (("Chat",), "Chat", 1.0),
        ((), "Chat", 1.5),  # takes anything, is made for nothing
        (("Chat",), None, 1.0),
        ((), None, 1.0),
    ],
)
def test_affinity_prefers_models_that_list_the_agent_type(
    agent_types: tuple[str, ...], asked: str | None, factor: float
) -> None:
    listing = replace(B, agent_types=("Chat",))
    scored = parts(replace(A, agent_types=agent_types), listing, request=Request(agent_type=asked))
    assert scored["a"].affinity == factor


@pytest.mark.parametrize(
    ("request_", "llama_cpp", "vllm"),
    [
        (Request(), 1.0, 1.25),
        (Request(mode=Mode.INTERACTIVE, priority=0), 1.0, 1.25),
        (Request(mode=Mode.BATCH), 1.25, 1.0),
        (Request(priority=2), 1.25, 1.0),
        (Request(priority=3), 1.0, 1.25),
        (Request(prefer_llama_cpp=True), 1.0, 2.0),
        (Request(prefer_llama_cpp=True, mode=Mode.BATCH), 1.25, 2.0),
    ],
)
def test_mode_fits_backends_to_jobs(request_: Request, llama_cpp: float, vllm: float) -> None:
    scored = parts(A, VLLM, request=request_)
    assert (scored["a"].mode, scored["b"].mode) == (llama_cpp, vllm)


@PROPERTY
@given(
    llama_slots=st.integers(1, 64),
    vllm_slots=st.integers(1, 1024),
    used=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    request_=st.sampled_from((Request(), Request(mode=Mode.BATCH))),
    pressure=st.sampled_from((Pressure.LOW, Pressure.NORMAL, Pressure.UNKNOWN)),
    sizes=st.tuples(*[st.sampled_from((2.5, 6.5, 7.9))] * 2),
)
def test_interactive_goes_to_llama_cpp_and_batch_to_vllm_while_they_have_a_slot_however_many_the_other_has(
    llama_slots: int,
    vllm_slots: int,
    used: tuple[float, float],
    request_: Request,
    pressure: Pressure,
    sizes: tuple[float, float],
) -> None:
    """Alike in speed, failures and affinity; loads, and sizes of one class of the specification, vary."""
    llama = replace(A, slots=llama_slots, in_flight=int(used[0] * llama_slots), vram_gb=sizes[0])
    vllm = replace(VLLM, slots=vllm_slots, in_flight=int(used[1] * vllm_slots), vram_gb=sizes[1])
    wanted, other = (vllm, llama) if request_.mode is Mode.BATCH else (llama, vllm)

    # The card's own bound on requests in flight is not what is looked at.
    gpu = replace(COLD, pressure=pressure, in_flight=0)
    chosen = decide(snapshot(llama, vllm, gpus=(gpu,)), request_).model

    free = [model for model in (wanted, other) if model.in_flight < model.slots]
    assert chosen == (free[0] if free else None)


def test_a_vllm_of_256_slots_does_not_outbid_an_idle_llama_cpp() -> None:
    scored = parts(A, replace(VLLM, slots=256))
    assert scored["a"].score == 0.25
    # Level with the 1/4 of the other, then 1.25 for what it is less made for.
    assert scored["b"].load == 1 / 256
    assert scored["b"].score == pytest.approx(0.25 * 1.25)


def test_among_one_kind_the_most_free_slots_still_count() -> None:
    small, large = replace(VLLM, slots=8), replace(named(VLLM, "c"), slots=256)
    scored = parts(A, small, large)
    assert scored["b"].score == pytest.approx(32 * scored["c"].score)


@pytest.mark.parametrize(
    ("llama", "request_"),
    [
        (replace(A, failure_ema=0.5), Request()),
        (replace(A, tokens_per_second=50.0), Request()),  # three times slower is no low latency
        (replace(A, agent_types=()), Request(agent_type="Chat")),
    ],
)
def test_failures_speed_and_affinity_still_outweigh_the_mode(llama: Model, request_: Request) -> None:
    assert decide(snapshot(llama, replace(VLLM, slots=256)), request_).model == replace(VLLM, slots=256)


@pytest.mark.parametrize(
    ("pressure", "thermal", "factor"),
    [
        (Pressure.NORMAL, Thermal.WARNING, 1.0),  # 65 C is normal work for such a card
        (Pressure.HIGH, Thermal.NORMAL, 2.0),
        (Pressure.LOW, Thermal.THROTTLING, 2.0),
    ],
)
def test_vllm_yields_under_pressure_and_heat_even_to_batches(
    pressure: Pressure, thermal: Thermal, factor: float
) -> None:
    gpu = replace(COLD, pressure=pressure, thermal=thermal)
    decision = decide(snapshot(A, VLLM, gpus=(gpu,)), Request(mode=Mode.BATCH))
    assert decision.parts["b"].mode == factor


@pytest.mark.parametrize(
    ("pressure", "sizes"),
    [
        (Pressure.LOW, [1.3, 1.15, 1.0]),
        (Pressure.NORMAL, [1.0, 1.0, 1.0]),
        (Pressure.HIGH, [1.0, 1.15, 1.3]),
        (Pressure.UNKNOWN, [1.0, 1.0, 1.0]),
    ],
)
def test_size_prefers_larger_models_at_low_and_smaller_ones_at_high_pressure(
    pressure: Pressure, sizes: list[float]
) -> None:
    scored = parts(
        replace(A, vram_gb=2.0), replace(B, vram_gb=6.0), replace(C, vram_gb=20.0), pressure=pressure
    )
    assert [scored[name].size for name in "abc"] == pytest.approx(sizes)


def test_size_is_compared_among_models_of_one_kind_of_backend() -> None:
    models = (replace(A, vram_gb=2.0), replace(C, vram_gb=6.0), replace(VLLM, vram_gb=20.0))
    scored = parts(*models, pressure=Pressure.LOW)
    assert [scored[name].size for name in "acb"] == [1.3, 1.0, 1.0]


@pytest.mark.parametrize("pressure", [Pressure.LOW, Pressure.HIGH])
def test_a_model_of_unknown_size_is_never_preferred_for_it(pressure: Pressure) -> None:
    scored = parts(replace(A, vram_gb=None), replace(B, vram_gb=6.0), pressure=pressure)
    assert (scored["a"].size, scored["b"].size) == (1.3, 1.0)


def test_replicas_of_one_size_differ_by_nothing_but_load() -> None:
    scored = parts(A, replace(B, in_flight=1), pressure=Pressure.HIGH)
    assert scored["a"].size == scored["b"].size == 1.0


def test_the_score_is_the_product_of_its_factors() -> None:
    model = replace(A, in_flight=1, failure_ema=0.25, agent_types=(), tokens_per_second=100.0, vram_gb=20.0)
    request = Request(agent_type="Chat", mode=Mode.BATCH)
    part = parts(model, B, request=request, pressure=Pressure.HIGH)["a"]
    assert (part.load, part.failures, part.affinity, part.mode, part.size) == (0.5, 2.0, 1.5, 1.25, 1.3)
    assert part.score == pytest.approx(0.5 * 1.5 * 2.0 * 1.5 * 1.25 * 1.3)


@pytest.mark.parametrize("pressure", [Pressure.NORMAL, Pressure.HIGH])
def test_the_default_models_send_idle_chat_to_the_fastest(pressure: Pressure) -> None:
    gpu = replace(COLD, pressure=pressure)
    ranked = rank(snapshot(OPENINS, MEDIX, TINY, gpus=(gpu,)), Request(agent_type="Chat"))
    assert [entry.model.name for entry in ranked] == ["tiny-llama-1b", "bi-medix2", "openins-llama3-8b"]


def test_work_spreads_over_the_default_models_as_they_fill() -> None:
    one_busy = replace(TINY, in_flight=1)
    assert decide(snapshot(OPENINS, MEDIX, one_busy), Request(agent_type="Chat")).model == MEDIX


@pytest.mark.parametrize(
    ("ahead", "behind"),
    [
        (replace(B, kv_use=0.2), replace(A, kv_use=0.3)),
        (replace(B, kv_use=0.8), A),  # known headroom before unknown
        (replace(B, kv_use=0.2, gpus=("host/1",)), replace(A, kv_use=0.2)),  # the cooler GPU
        (replace(B, gpus=("host/1",)), replace(A, gpus=())),  # known heat before unknown
        (A, B),  # the name
        (replace(B, kv_use=0.1, slots=100, in_flight=4), replace(A, slots=100, in_flight=4)),
        (replace(B, kv_use=0.1, slots=100, in_flight=20), replace(A, slots=100, in_flight=19)),  # exactly 5 %
    ],
)
def test_scores_within_five_percent_go_by_headroom_then_heat_then_name(ahead: Model, behind: Model) -> None:
    cooler = replace(SECOND, temperature_c=40.0)
    assert decide(snapshot(ahead, behind, gpus=(COLD, cooler)), Request()).model == ahead


def test_headroom_does_not_beat_a_clearly_lower_score() -> None:
    roomy = replace(B, kv_use=0.0, slots=100, in_flight=21)
    tight = replace(A, kv_use=0.8, slots=100, in_flight=19)
    assert decide(snapshot(roomy, tight), Request()).model == tight


def test_the_ranking_shows_candidates_only_and_estimates_each() -> None:
    ranked = rank(snapshot(A, replace(B, in_flight=4), C), Request(max_tokens=300))
    assert [entry.model.name for entry in ranked] == ["a", "c"]
    assert ranked[0].estimated_duration_ms == pytest.approx(2000)


@pytest.mark.parametrize("request_", [Request(model="nobody"), Request(min_context_tokens=10**6)])
def test_nothing_is_ranked_for_what_no_model_could_serve(request_: Request) -> None:
    assert rank(snapshot(A), request_) == ()
    assert rank(snapshot(), Request()) == ()
