"""What the forecast must beat: the last value at 1, 6 and 24 h, with intervals that keep their promise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from benchmarks.forecast import Case, Score, evaluate, generated, traces, traces_folder

_SEASONS = ("daily", "daily_memory", "weekly")
_SEEDS = (1, 2)
_EVERY_MIN = 230  # no divisor of a day, so that every time of day is an origin
_FOLDER = traces_folder()

needs_traces = pytest.mark.skipif(_FOLDER is None, reason="the public traces are not beside the checkout")


@cache
def _scores(kind: str, hours: float) -> tuple[Score, ...]:
    cases = [case for seed in _SEEDS for case in generated(seed) if case.name.startswith(f"{kind} #")]
    return _of(tuple(cases), hours)


@cache
def _of_traces(prefix: str, hours: float) -> tuple[Score, ...]:
    assert _FOLDER is not None
    found = tuple(case for case in traces(_FOLDER) if case.name.startswith(prefix))
    return _of(found, hours)


def _of(cases: tuple[Case, ...], hours: float) -> tuple[Score, ...]:
    scores = (
        evaluate(case, hours, 20 if case.name == "mem_used_mib" else _EVERY_MIN if case.step_min > 1 else 70)
        for case in cases
    )
    found = tuple(score for score in scores if score is not None)
    assert len(found) == len(cases) > 0
    return found


def _ratio(scores: tuple[Score, ...]) -> float:
    return float(np.mean([score.ratio() for score in scores]))


def _covered(scores: tuple[Score, ...]) -> float:
    return float(np.mean([score.covered for score in scores]))


@pytest.mark.parametrize(("hours", "most"), [(1, 1.0), (6, 0.6), (24, 1.0)])
@pytest.mark.parametrize("kind", _SEASONS)
def test_on_daily_seasons_it_beats_the_last_value(kind: str, hours: float, most: float) -> None:
    if (kind, hours) == ("weekly", 24):
        most = (
            1.05  # from Friday to Saturday no rule without the week can know; with it, it would need months
        )

    assert _ratio(_scores(kind, hours)) < most


@pytest.mark.parametrize("hours", [1, 6, 24])
@pytest.mark.parametrize("kind", ["evenings", "bursts", "walk"])
def test_where_the_last_value_is_hard_to_beat_it_is_hardly_worse(kind: str, hours: float) -> None:
    assert _ratio(_scores(kind, hours)) < 1.1


@pytest.mark.parametrize("hours", [1, 6, 24])
@pytest.mark.parametrize("kind", [*_SEASONS, "evenings", "bursts", "walk", "noise"])
def test_nine_of_ten_truths_lie_in_the_interval(kind: str, hours: float) -> None:
    """Two series have some 160 origins, at 24 h a dozen that don't overlap: bounds for one kind are wide."""
    least, most = (0.85, 0.95) if hours < 24 else (0.82, 0.98)

    assert least <= _covered(_scores(kind, hours)) <= most


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_over_all_generated_series_the_intervals_hold_what_they_promise(hours: float) -> None:
    kinds = [*_SEASONS, "evenings", "bursts", "walk", "noise"]

    assert 0.87 <= np.mean([_covered(_scores(kind, hours)) for kind in kinds]) <= 0.95


def test_a_line_is_the_worst_of_all() -> None:
    for kind in _SEASONS:
        assert max(score.over(score.line) for score in _scores(kind, 6)) < 0.5


@needs_traces
@pytest.mark.parametrize(("hours", "most"), [(1, 1.0), (6, 0.9), (24, 1.0)])
def test_on_servegen_it_beats_the_last_value(hours: float, most: float) -> None:
    assert _ratio(_of_traces("m_", hours)) < most
    assert max(score.ratio() for score in _of_traces("m_", hours)) < 1.02


@needs_traces
@pytest.mark.parametrize("hours", [1, 6, 24])
def test_on_servegen_nine_of_ten_truths_lie_in_the_interval(hours: float) -> None:
    assert 0.85 <= _covered(_of_traces("m_", hours)) <= 0.95


@needs_traces
@pytest.mark.parametrize("hours", [1, 6])
def test_on_the_gpu_telemetry_it_beats_the_last_value(hours: float) -> None:
    """Its 4,504 rows stand for minutes: too few for 24 h. Memory moves in one run only, so look closely."""
    assert _ratio(_of_traces("", hours)) < 1.0
    assert _ratio(_of_traces("mem_used_mib", hours)) <= 1.0
    assert _ratio(_of_traces("gpu_util_pct", hours)) < 0.95
