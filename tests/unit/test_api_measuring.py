"""What a finished job says of its model, and the spread of many."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.measuring import UNSERVED, Measured, figures, measured, spread
from shared.store.records import JobRecord

_FIELDS = {
    "state": "succeeded",
    "decision_model": "alpha",
    "submitted_ms": "1000",
    "started_ms": "1200",
    "finished_ms": "3300",
    "first_token_ms": "100",
}
_USAGE = {"prompt_tokens": 50, "completion_tokens": 101}


def _record(response: dict[str, Any] | None = None, **changes: str) -> JobRecord:
    result = json.dumps({"usage": _USAGE, "response": response or {}})
    return JobRecord("j1", {**_FIELDS, **changes}, result=result)


def test_the_backends_own_timings_count_where_it_tells_them() -> None:
    timings = {"prompt_n": 50, "prompt_ms": 25.0, "predicted_n": 101, "predicted_ms": 1010.0}

    one = measured(_record({"timings": timings}))

    assert one == Measured(
        "alpha", 1000, 3300, None, queue_ms=200, ttft_ms=100, prefill=2000, decode=100,
        prompt_tokens=50, output_tokens=101,
    )  # fmt: skip


def test_a_single_token_has_no_decode_speed() -> None:
    """Backends divide by next to nothing there: 225,886 tokens/s were seen."""
    timings = {"prompt_n": 50, "prompt_ms": 25.0, "predicted_n": 1, "predicted_ms": 0.004}
    record = _record({"timings": timings})
    single = replace(
        record,
        result=json.dumps({"usage": {**_USAGE, "completion_tokens": 1}, "response": {"timings": timings}}),
    )

    one = measured(single)

    assert one is not None
    assert one.decode is None


def test_without_timings_speeds_come_from_the_clock() -> None:
    """50 tokens of prompt until the first token after 100 ms; 100 more in the 2,000 ms that follow."""
    one = measured(_record())

    assert one is not None
    assert (one.prefill, one.decode) == (500, 50)


@pytest.mark.parametrize("value", [None, True, "fast", -1, 0, 10**400, 1e300])
def test_timings_that_are_none_are_not_used(value: Any) -> None:
    one = measured(_record({"timings": {"prompt_n": 50, "prompt_ms": value, "predicted_ms": value}}))

    assert one is not None
    assert (one.prefill, one.decode) == (500, 50)


def test_a_failure_counts_by_its_type_and_a_job_that_never_started_not_at_all() -> None:
    failed = measured(_record(state="failed", error_type="rejected"))
    handed_back = measured(_record(state="cancelled", settled="1"))
    unstarted = measured(_record(state="cancelled"))

    assert failed is not None
    assert handed_back is not None
    assert (failed.error, handed_back.error, unstarted) == ("rejected", UNSERVED, None)
    found = figures([failed, handed_back, failed])
    assert (found.requests, found.succeeded) == (3, 0)
    assert found.errors == {"rejected": 2, UNSERVED: 1}
    assert found.ttft_ms is None


def test_the_output_of_all_together_is_counted_over_the_time_of_all_together() -> None:
    both = [Measured("alpha", start, start + 2000, output_tokens=100) for start in (0.0, 2000.0)]

    assert figures(both).output_tokens_per_second == 50


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200))
def test_percentiles_are_ordered_values_that_were_measured(values: list[float]) -> None:
    found = spread(values)

    assert found is not None
    known = {round(value, 2) for value in values}
    assert found.p50 <= found.p90 <= found.p99
    assert {found.p50, found.p90, found.p99} <= known
    assert sum(value <= found.p90 + 0.01 for value in values) >= math.floor(0.9 * len(values))


def test_nothing_measured_has_no_spread() -> None:
    assert spread([None, math.inf, math.nan]) is None
