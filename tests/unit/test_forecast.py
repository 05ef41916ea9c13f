"""The forecast of one series: never out of order or infinite, silent without history, honest of its past."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.decision.forecast import KEPT_DAYS, Forecast, Quality, project
from shared.decision.forecast_grid import RATE_STEP_MIN, levels, rates
from shared.decision.forecast_interval import past_interval
from shared.decision.forecast_rules import rules

DAY = 144
"""Steps of ten minutes."""
_READINGS = st.floats(allow_nan=True, allow_infinity=True, width=64)
_PLAIN = st.floats(0, 30_000)


def _days(days: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A clean daily season between 0 and 10, lowest at midnight."""
    steps = np.arange(days * DAY)
    season: np.ndarray[tuple[int], np.dtype[np.float64]] = 5 - 5 * np.cos(2 * np.pi * steps / DAY)
    return season


def _sound(found: Forecast, ceiling: float) -> None:
    shown = (found.last, found.low, found.mid, found.high, found.peak_high, found.mase, found.coverage)
    assert all(value is None or math.isfinite(value) for value in shown)
    if found.low is not None:
        assert found.mid is not None
        assert found.high is not None
        assert 0 <= found.low <= found.mid <= found.high <= ceiling
        assert found.high <= (found.peak_high or ceiling) <= ceiling
    assert found.coverage is None or 0 <= found.coverage <= 1
    assert not found.weights or sum(found.weights.values()) == pytest.approx(1)


@given(
    st.lists(st.one_of(_PLAIN, _READINGS), max_size=60),
    st.integers(1, 30),
    st.sampled_from([0.25, 1.0, 6.0, 24.0]),
    st.floats(0, 1e6),
)
@settings(max_examples=60, deadline=None)
def test_whatever_was_read_the_forecast_is_finite_and_in_order(
    block: list[float], repeats: int, hours: float, ceiling: float
) -> None:
    _sound(
        project(block * repeats, step_min=10, hours=hours, peaks=block * repeats, ceiling=ceiling), ceiling
    )


@given(st.integers(0, 2**32), st.sampled_from([0.25, 1.0, 6.0, 24.0]), st.integers(1, 9 * DAY))
@settings(max_examples=40, deadline=None)
def test_on_any_length_of_history_with_gaps_the_forecast_is_finite_and_in_order(
    seed: int, hours: float, size: int
) -> None:
    rng = np.random.default_rng(seed)
    values = np.abs(np.cumsum(rng.normal(size=size))) * 1000
    values[rng.random(size) < 0.3] = np.nan
    _sound(project(values, step_min=10, hours=hours, peaks=values, ceiling=24_576), 24_576)


@pytest.mark.parametrize("hours", [0.25, 1.0, 6.0, 24.0])
def test_under_three_horizons_it_says_the_last_value_without_an_interval(hours: float) -> None:
    minutes = round(3 * 60 * hours)
    short, enough = np.arange(minutes - 1.0), np.arange(minutes + 1.0)

    found = project(short, step_min=1, hours=hours)

    assert (found.quality, found.method) == (Quality.NOT_ENOUGH_HISTORY, "last_value")
    assert (found.mid, found.low, found.high, found.mase, found.coverage) == (
        short[-1],
        None,
        None,
        None,
        None,
    )
    assert found.history_hours == pytest.approx((minutes - 1) / 60)
    assert project(enough, step_min=1, hours=hours).quality is Quality.MEASURED


def test_gaps_are_no_history() -> None:
    values = np.full(DAY, np.nan)
    values[::12] = 5.0

    found = project(values, step_min=10, hours=1)

    assert (found.quality, found.history_hours) == (Quality.NOT_ENOUGH_HISTORY, 2.0)


@pytest.mark.parametrize("values", [[], [math.nan] * 500, [math.inf, -math.inf] * 250])
def test_without_a_reading_nothing_is_said(values: list[float]) -> None:
    found = project(values, step_min=1, hours=1)

    assert (found.quality, found.mid, found.last, found.history_hours) == (
        Quality.NO_SAMPLES,
        None,
        None,
        0.0,
    )


def test_what_never_moves_is_forecast_exactly() -> None:
    found = project([7.5] * (8 * DAY), step_min=10, hours=6)

    assert (found.low, found.mid, found.high) == (7.5, 7.5, 7.5)
    assert (found.mase, found.coverage) == (1.0, 1.0)


def test_a_daily_season_is_foreseen() -> None:
    """At 18:00 six hours ahead is midnight, where the season is lowest; a line would say far below."""
    values = _days(8)[: 7 * DAY + 3 * DAY // 4 + 1]

    found = project(values, step_min=10, hours=6)

    assert values[-1] == pytest.approx(5)
    assert found.mid is not None
    assert found.mid < 0.5
    assert found.mase is not None
    assert found.mase < 0.5


def test_under_two_days_no_profile_is_used() -> None:
    two = _days(3)

    assert not any("daily" in name for name in project(two[: 2 * DAY], step_min=10, hours=6).weights)
    assert any("daily" in name for name in project(two, step_min=10, hours=6).weights)


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_a_forecast_of_the_past_never_knew_what_came_later(hours: int) -> None:
    rng = np.random.default_rng(3)
    values = _days(6) + rng.normal(size=6 * DAY)
    changed = values.copy()
    changed[5 * DAY :] += 100

    before, after = rules(values, 10, hours * 6), rules(changed, 10, hours * 6)

    for name, said in before.items():
        assert np.array_equal(said[: 5 * DAY], after[name][: 5 * DAY], equal_nan=True), name
        assert not np.array_equal(said, after[name], equal_nan=True), name


def test_a_rise_is_not_drawn_out_into_a_line() -> None:
    """A card that a game filled in the last hour: a line would run past the end of the card."""
    values = [600.0] * (4 * 1440) + list(np.linspace(600, 9000, 60))

    found = project(values, step_min=1, hours=6, ceiling=24_576)

    assert found.mid is not None
    assert found.mid <= 9000


def test_the_peak_on_the_way_is_above_what_the_end_is_expected_at() -> None:
    """Two minutes of 8 GB in every half hour: the value in six hours is mostly idle, the way there is not."""
    values = np.full(3 * 1440, 600.0)
    values[::30] = values[1::30] = 8000.0

    found = project(values[:-10], peaks=values[:-10], step_min=1, hours=6, ceiling=24_576)

    assert found.mid is not None
    assert found.peak_high is not None
    assert found.mid < 3000
    assert found.peak_high >= 7900


def test_only_eight_days_count() -> None:
    recent = _days(KEPT_DAYS)

    assert project(np.concatenate([np.full(5 * DAY, 1e6), recent]), step_min=10, hours=6) == project(
        recent, step_min=10, hours=6
    )


def test_intervals_widen_after_misses_and_narrow_again() -> None:
    rng = np.random.default_rng(5)
    calm = np.abs(rng.normal(size=600))
    stormy = np.concatenate([calm, 4 * np.abs(rng.normal(size=60))])
    over = np.concatenate([stormy, np.abs(rng.normal(size=600))])

    before, during, after = (past_interval(one, 6, 0.9) for one in (calm, stormy, over))

    assert before is not None
    assert during is not None
    assert after is not None
    assert during.half_width > 1.5 * max(before.half_width, after.half_width)


def test_after_days_of_exact_forecasts_misses_make_an_interval_within_a_horizon_and_hits_unmake_it() -> None:
    unknown = np.full(36, np.nan)
    still, moved = np.zeros(800), np.full(24, 500.0)

    before, soon, later = (
        past_interval(np.concatenate([*parts, unknown]), 36, 0.9)
        for parts in ((still,), (still, moved), (still, moved, still))
    )

    assert before is not None
    assert soon is not None
    assert later is not None
    assert (before.half_width, later.half_width) == (0.0, 0.0)
    assert 100 < soon.half_width <= 500


def test_too_few_errors_make_no_interval() -> None:
    unknown = np.full(100, np.nan)
    unknown[::30] = 1.0

    assert past_interval(unknown, 6, 0.9) is None


def test_buckets_outside_of_the_eight_days_are_left_out() -> None:
    now = 30_000_000
    grid = levels({now: 1.0, now - 5: 2.0, now - KEPT_DAYS * 1440: 3.0, now + 1: 4.0}, now)

    assert grid.size == KEPT_DAYS * 1440
    assert grid[np.isfinite(grid)].tolist() == [2.0, 1.0]
    assert grid[-1] == 1.0


def test_rates_start_with_the_first_request_and_leave_the_running_minute_out() -> None:
    now = 30_000_000
    counts = {now: 50, now - 1: 5, now - 3 * RATE_STEP_MIN: 10}

    assert rates(counts, now).tolist() == [2.0, 0.0, 1.0]
    assert rates({}, now).size == 0
