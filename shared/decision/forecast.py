"""Forecast of one series some hours ahead, with an interval, and how good its past forecasts were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from shared.decision.forecast_interval import past_interval
from shared.decision.forecast_rules import (
    LAST,
    MINUTES_PER_DAY,
    PROFILE_NEEDS_DAYS,
    Series,
    mixture,
    rules,
    seasonal_naive,
)

LEAST_HOURS, MOST_HOURS, DEFAULT_HOURS = 0.25, 24.0, 1.0
KEPT_DAYS = 8
"""History that a forecast looks at: a profile of seven days, and one to judge it by."""
LEVEL = 0.9
"""The share of truths that an interval is to cover."""
HORIZONS_NEEDED = 3
_ROUNDING = 1e-9
_MOST = 1e12
"""Readings beyond are not believed; within, no sum here loses its digits."""


class Quality(StrEnum):
    MEASURED = "measured"  # see mase and coverage
    NOT_ENOUGH_HISTORY = "not_enough_history"  # under three horizons: the last value, without an interval
    NO_SAMPLES = "no_samples"


@dataclass(frozen=True, slots=True)
class Forecast:
    """``low <= mid <= high``, all finite, in the unit of the series; None = can't be told.

    ``mase`` is the mean absolute error of its own past forecasts over that of the last value at the same
    horizon, ``mase_seasonal`` over that of the value one day before: below 1 is better. ``coverage`` is the
    share of ``checked`` past truths that lay inside the interval of their time, wanted is ``LEVEL``.
    ``peak_high`` bounds the highest value on the way with the same confidence.
    """

    quality: Quality
    method: str
    history_hours: float
    last: float | None = None
    mid: float | None = None
    low: float | None = None
    high: float | None = None
    peak_high: float | None = None
    mase: float | None = None
    mase_seasonal: float | None = None
    coverage: float | None = None
    checked: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)


def project(
    readings: Sequence[float] | Series,
    *,
    step_min: int,
    hours: float,
    peaks: Sequence[float] | Series | None = None,
    ceiling: float = _MOST,
) -> Forecast:
    """The series ``hours`` after its last step. Missing readings are NaN; values lie in 0 to ``ceiling``.

    ``peaks`` are the highest values within each step, for ``peak_high``. Only the last ``KEPT_DAYS`` count.
    """
    kept = KEPT_DAYS * MINUTES_PER_DAY // step_min
    raw = _believed(np.asarray(readings, dtype=np.float64)[-kept:])
    seen = np.isfinite(raw)
    if not seen.any():
        return Forecast(Quality.NO_SAMPLES, "none", 0.0)
    first = int(np.argmax(seen))
    values, seen = _held(raw[first:]), seen[first:]
    history_hours = float(seen.sum()) * step_min / 60
    last = _within(float(values[-1]), ceiling)
    ahead = max(1, round(hours * 60 / step_min))
    plain = Forecast(Quality.NOT_ENOUGH_HISTORY, LAST, history_hours, last, last)
    if history_hours < HORIZONS_NEEDED * hours or values.size <= HORIZONS_NEEDED * ahead:
        return plain
    highs = None if peaks is None else _believed(np.asarray(peaks, dtype=np.float64)[-kept:])[first:]
    return _measured(values, seen, step_min, ahead, highs, ceiling, plain)


def _measured(
    values: Series,
    seen: np.ndarray[tuple[int], np.dtype[np.bool_]],
    step_min: int,
    ahead: int,
    peaks: Series | None,
    ceiling: float,
    plain: Forecast,
) -> Forecast:
    found = rules(values, step_min, ahead)
    said, weights = mixture(values, found, step_min, ahead)
    # A weighted mean of equal values is off by a rounding error, which would be infinitely worse than none.
    said = np.where(np.abs(said - values) <= _ROUNDING * (1.0 + np.max(np.abs(values))), values, said)
    truth = np.full(values.size, np.nan)
    truth[:-ahead] = np.where(seen[:-ahead] & seen[ahead:], values[ahead:], np.nan)
    truth[: _learned(values.size, step_min, ahead)] = np.nan
    errors = np.abs(truth - said)
    interval = past_interval(errors, ahead, LEVEL)
    if interval is None:
        return plain
    mid = _within(float(said[-1]), ceiling)
    high = max(mid, _within(float(said[-1]) + interval.half_width, ceiling))
    return Forecast(
        quality=Quality.MEASURED,
        method="rules weighted by their past errors",
        history_hours=plain.history_hours,
        last=plain.last,
        mid=mid,
        low=min(mid, _within(float(said[-1]) - interval.half_width, ceiling)),
        high=high,
        peak_high=None if peaks is None else _peak(said, peaks, ahead, high, ceiling),
        mase=_ratio(errors, np.abs(truth - values)),
        mase_seasonal=_ratio(errors, np.abs(truth - seasonal_naive(values, step_min, ahead))),
        coverage=interval.coverage,
        checked=interval.checked,
        weights=dict(zip(found, weights[:, -1].tolist(), strict=True)),
    )


def _learned(steps: int, step_min: int, ahead: int) -> int:
    """The first step whose forecast counts: errors from before there were profiles tell little of now."""
    first = PROFILE_NEEDS_DAYS * MINUTES_PER_DAY // step_min
    return first if steps >= first + (HORIZONS_NEEDED + 1) * ahead else 0


def _peak(said: Series, peaks: Series, ahead: int, high: float, ceiling: float) -> float | None:
    """Upper bound of the highest value until then: by how much past forecasts were surpassed on the way."""
    known = np.where(np.isfinite(peaks), peaks, -np.inf)
    if known.size <= ahead:
        return None
    on_the_way = np.lib.stride_tricks.sliding_window_view(known[1:], ahead).max(axis=1)
    surpassed = np.full(said.size, np.nan)
    surpassed[: on_the_way.size] = np.maximum(0.0, on_the_way - said[: on_the_way.size])
    bound = past_interval(surpassed, ahead, LEVEL)
    return None if bound is None else max(high, _within(float(said[-1]) + bound.half_width, ceiling))


def _believed(values: Series) -> Series:
    return np.where(np.abs(values) <= _MOST, values, np.nan)


def _held(values: Series) -> Series:
    """Gaps filled with the value before them; the first value is there."""
    at = np.where(np.isfinite(values), np.arange(values.size), 0)
    held: Series = values[np.maximum.accumulate(at)]
    return held


def _within(value: float, ceiling: float) -> float:
    return min(max(0.0, value), ceiling)


def _ratio(errors: Series, yardstick: Series) -> float | None:
    """None where nothing can be compared, or where the yardstick never erred and we did."""
    both = np.isfinite(errors) & np.isfinite(yardstick)
    if not both.any():
        return None
    ours, theirs = float(errors[both].sum()), float(yardstick[both].sum())
    if theirs <= 0.0:
        return 1.0 if ours <= 0.0 else None
    return ours / theirs
