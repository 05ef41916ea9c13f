"""Estimated speed and duration: the specification's figures, learned values, waiting, wild readings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given

from shared.config import JobSettings
from shared.decision.estimate import (
    UNKNOWN_LENGTH,
    duration_ms,
    likely_duration_ms,
    tabled_speed,
    tokens_per_second,
    wait_s,
)
from shared.decision.snapshot import Model, Request
from tests.unit.strategies import MEDIX, OPENINS, PLAIN, PROPERTY, TINY, WILD, models_of, requests

FULL_ANSWER = Request(max_tokens=512)


@pytest.mark.parametrize(
    ("vram_gb", "speed"),
    [
        (0.5, 200.0),
        (1.99, 200.0),
        (2.0, 150.0),
        (6.5, 150.0),
        (7.8, 150.0),
        (8.0, 100.0),
        (15.0, 100.0),
        (15.1, 50.0),
        (40.0, 50.0),
        (None, 150.0),
    ],
)
def test_untried_models_are_estimated_by_size(vram_gb: float | None, speed: float) -> None:
    assert tabled_speed(vram_gb) == speed
    assert tokens_per_second(replace(PLAIN, vram_gb=vram_gb)) == speed


@pytest.mark.parametrize(("model", "seconds"), [(TINY, 2.5), (MEDIX, 3.4), (OPENINS, 3.4)])
def test_an_answer_of_512_tokens_takes_what_the_specification_says(model: Model, seconds: float) -> None:
    assert duration_ms(model, FULL_ANSWER) / 1000 == pytest.approx(seconds, abs=0.07)


def test_a_registered_speed_beats_the_table_and_a_learned_one_beats_both() -> None:
    registered = replace(PLAIN, tokens_per_second=80.0)
    assert tokens_per_second(registered) == 80.0
    assert tokens_per_second(replace(registered, seconds_per_output_token=0.025)) == 40.0


@pytest.mark.parametrize("useless", [0.0, -1.0, math.nan, math.inf])
def test_a_useless_speed_falls_back_to_the_next_source(useless: float) -> None:
    assert tokens_per_second(replace(PLAIN, seconds_per_output_token=useless, tokens_per_second=80.0)) == 80.0
    assert tokens_per_second(replace(PLAIN, tokens_per_second=useless)) == 150.0


def test_prefill_counts_once_it_is_learned() -> None:
    request = Request(prompt_tokens=2000, max_tokens=150)
    assert duration_ms(PLAIN, request) == pytest.approx(1000)
    assert duration_ms(replace(PLAIN, seconds_per_prompt_token=0.001), request) == pytest.approx(3000)


@pytest.mark.parametrize(
    ("running", "waiting", "in_flight", "seconds"),
    [
        (None, None, 0, 0.0),
        (None, None, 3, 0.0),
        (None, None, 4, 0.5),  # one ahead of us, 4 slots, 2 s each
        (4, 3, 0, 2.0),  # four ahead of us
        (2, 2, 0, 2.0),  # a backend that runs only two though it has four slots: two waiting, two at a time
    ],
)
def test_waiting_is_what_is_ahead_over_what_is_served_at_once(
    running: int | None, waiting: int | None, in_flight: int, seconds: float
) -> None:
    model = replace(
        PLAIN, backend_running=running, backend_waiting=waiting, in_flight=in_flight, avg_latency_ms=2000.0
    )
    assert wait_s(model, FULL_ANSWER) == pytest.approx(seconds)
    assert duration_ms(model, FULL_ANSWER) == pytest.approx(1000 * seconds + 512 / 150 * 1000)


def test_an_untried_model_waits_by_its_estimated_service_time() -> None:
    assert wait_s(replace(PLAIN, in_flight=4), FULL_ANSWER) == pytest.approx(512 / 150 / 4)


def test_the_usual_length_shortens_the_likely_duration_only() -> None:
    brief = replace(PLAIN, avg_output_tokens=15.0)
    assert likely_duration_ms(brief, FULL_ANSWER) == pytest.approx(100)
    assert likely_duration_ms(brief, Request(max_tokens=3)) == pytest.approx(20)
    assert duration_ms(brief, FULL_ANSWER) == duration_ms(PLAIN, FULL_ANSWER)


def test_an_unknown_usual_length_is_the_default_of_a_request() -> None:
    untried, huge = replace(PLAIN, context_tokens=1_000_000), Request(max_tokens=750_000)
    assert JobSettings().max_tokens == UNKNOWN_LENGTH
    assert likely_duration_ms(untried, huge) == pytest.approx(512 / 150 * 1000)
    assert likely_duration_ms(untried, Request(max_tokens=3)) == pytest.approx(20)


def test_no_answer_is_longer_than_the_room_in_the_context() -> None:
    wordy, request = (
        replace(PLAIN, context_tokens=2048, avg_output_tokens=9000.0),
        Request(prompt_tokens=1748, max_tokens=10_000),
    )
    assert likely_duration_ms(wordy, request) == pytest.approx(2000)
    assert likely_duration_ms(replace(wordy, context_known=False), request) == pytest.approx(60_000)
    assert likely_duration_ms(wordy, replace(request, prompt_tokens=5000)) == 0


@PROPERTY
@given(model=models_of("wild", WILD), request=requests())
def test_estimates_are_finite_for_every_reading(model: Model, request: Request) -> None:
    """Invariant 10."""
    speed = tokens_per_second(model)
    assert math.isfinite(speed)
    assert speed > 0
    for duration in (duration_ms(model, request), likely_duration_ms(model, request)):
        assert math.isfinite(duration)
        assert duration >= 0
