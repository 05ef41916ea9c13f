"""What a completion teaches about its model, and what a name that its server does not know comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.backends.completion import Completion
from shared.backends.errors import from_status
from shared.config import RouterSettings
from shared.outcomes import failure_of, learned
from shared.store.records import FailKind, ModelFailure

ANSWER = Completion(
    text="hi",
    finish_reason="stop",
    usage=None,
    response={},
    first_token_ms=500.0,
    total_ms=1_500.0,
    prompt_tokens=1_000,
    output_tokens=101,
    prompt_ms=200.0,
    prompt_processed=100,
    output_ms=None,
    truncated=False,
)


def test_prefill_speed_stands_on_the_tokens_that_were_processed_not_on_cached_ones() -> None:
    assert learned(ANSWER)["seconds_per_prompt_token"] == pytest.approx(0.002)


def test_without_the_backends_own_times_ours_are_taken() -> None:
    plain = replace(ANSWER, prompt_ms=None, prompt_processed=None)

    values = learned(plain)

    assert values["seconds_per_prompt_token"] == pytest.approx(0.0005)
    assert values["seconds_per_output_token"] == pytest.approx(0.01)
    assert (values["avg_latency_ms"], values["avg_output_tokens"]) == (1_500.0, 101.0)


@pytest.mark.parametrize("processed", [0, 1, 15])
def test_a_handful_of_prompt_tokens_teaches_no_speed(processed: int) -> None:
    assert "seconds_per_prompt_token" not in learned(replace(ANSWER, prompt_processed=processed))


def test_a_single_token_teaches_no_output_speed() -> None:
    assert "seconds_per_output_token" not in learned(replace(ANSWER, output_tokens=1))


def test_a_name_that_the_server_does_not_know_costs_nothing_and_lets_the_model_rest() -> None:
    failure = failure_of(from_status(404, "The model `x` does not exist."), 2, RouterSettings())

    assert (failure.kind, failure.charge, failure.delay_ms) == (FailKind.RETRY, False, 0)
    assert (failure.model_failure, failure.saturated_ms) == (ModelFailure.NONE, 0)
    assert failure.name_unknown_ms > 0
    assert failure_of(from_status(404, "Not Found"), 2, RouterSettings()).kind is FailKind.FAILED
