"""The simple forecasting rules and their mixture: the forecast of every step from what was known then."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

MINUTES_PER_DAY = 1440
PROFILE_DAYS = 7
LAST, FALLBACK = "last_value", "last_and_hour_mean"
PROFILE_NEEDS_DAYS = 2
"""A profile of one day is that day repeated: under two, the rules without a profile forecast alone."""

_WEIGHT_POWER = 8
"""Weights are (least error / own error) to this power: near to choosing the best, still averaging equals.

Tuned on ServeGen and generated series: at 2 rules that lose keep too much, at 16 it jumps between rules.
"""
_GUARD_POWER = 32
"""The mixture against the last value: where it has been the worse of the two it has hardly a say."""
_HALF_LIFE_DAYS = 2.0
"""Errors fade: in a window of eight days the first profiles that are measured stood on two days only."""
_FLAT = 1e-9


def rules(values: Series, step_min: int, ahead: int) -> Mapping[str, Series]:
    """What each rule would have said at every step about ``ahead`` steps later; NaN = nothing yet.

    ``values`` has no gaps. No rule looks past its own step. There is no line through the last minutes among
    them: it has 2.7 times the error of the last value at 6 h (decision model, section 7).
    """
    day, hour = MINUTES_PER_DAY // step_min, max(1, 60 // step_min)
    hours = ahead * step_min / 60
    found = {LAST: values, FALLBACK: 0.5 * values + 0.5 * _trailing_mean(values, hour)}
    if len(values) > day:
        mean = _since(day, _trailing_mean(values, day))
        found |= {"last_shrunk_to_day_mean": 0.8 * values + 0.2 * mean, "day_mean": mean}
    first = PROFILE_NEEDS_DAYS * day
    if len(values) > first:
        then, now = _same_time_of_day(values, step_min, ahead), _same_time_of_day(values, step_min, 0)
        profile, deviation = _mean(then), values - _mean(now)
        for decay_h in (3, 12):
            rule = profile + deviation * np.exp(-hours / decay_h)
            found[f"daily_profile_{decay_h}h"] = _since(first, rule)
        # A rare evening of gaming moves a mean for a week, a median not at all.
        found["daily_median"] = _since(first, _median(then))
    return found


def mixture(values: Series, found: Mapping[str, Series], step_min: int, ahead: int) -> tuple[Series, Series]:
    """The rules weighted by their own errors up to each step: forecasts, and weights (rule, step).

    Before any rule has errors over a whole horizon, it is the mean of last value and hour.
    """
    half_life = _HALF_LIFE_DAYS * MINUTES_PER_DAY / step_min
    names = list(found)
    said = np.array(list(found.values()))
    weights = _weights(values, said, ahead, half_life, _WEIGHT_POWER, names.index(FALLBACK))
    mixed = _blend(weights, said)
    guarded = np.array([mixed, values])
    trust, last = _weights(values, guarded, ahead, half_life, _GUARD_POWER, 0)
    weights = weights * trust
    weights[names.index(LAST)] += last
    return _blend(weights, said), weights


def _weights(
    values: Series, said: Series, ahead: int, half_life: float, power: int, otherwise: int
) -> Series:
    """Of each rule at each step, adding up to 1; all to the rule ``otherwise`` while none can be judged."""
    errors, counts = _past_errors(values, said, ahead, half_life)
    usable = (counts >= ahead) & np.isfinite(said)
    best = np.min(np.where(usable, errors, np.inf), axis=0)
    flat = _FLAT * (1.0 + float(np.max(np.abs(values))))
    ratio = (np.where(np.isfinite(best), best, 0.0) + flat) / (np.where(usable, errors, 1.0) + flat)
    weights: Series = np.where(usable, ratio**power, 0.0)
    weights[otherwise, ~usable.any(axis=0)] = 1.0
    weights /= weights.sum(axis=0)
    return weights


def _blend(weights: Series, said: Series) -> Series:
    mixed: Series = np.sum(weights * np.where(np.isfinite(said), said, 0.0), axis=0)
    return mixed


def seasonal_naive(values: Series, step_min: int, ahead: int) -> Series:
    """The value of one day before the forecast time, as a yardstick; NaN in the first day."""
    return _shifted(values, MINUTES_PER_DAY // step_min - ahead)


def _same_time_of_day(values: Series, step_min: int, ahead: int) -> Series:
    """Rows of the seven days before: half an hour around the time of day ``ahead`` steps later."""
    day, half = MINUTES_PER_DAY // step_min, max(0, 15 // step_min)
    rows = []
    for days in range(1, PROFILE_DAYS + 1):
        lag = days * day - ahead
        # Smoothing must not look past the step that forecasts: at 24 h the window would.
        rows.append(_shifted(_centred_mean(values, min(half, lag)), lag))
    return np.array(rows)


def _past_errors(values: Series, said: Series, ahead: int, half_life: float) -> tuple[Series, Series]:
    """Mean absolute error of each rule over what has come true at each step, fading, and its count."""
    steps = values.size - ahead
    misses = np.abs(values[ahead:] - said[:, :steps])
    known = np.isfinite(misses)
    growth = 2.0 ** (np.arange(steps) / half_life)
    weight = np.cumsum(known * growth, axis=1)
    total = np.cumsum(np.where(known, misses, 0.0) * growth, axis=1)
    errors, seen = np.zeros_like(said), np.zeros_like(said)
    errors[:, ahead:] = total / np.maximum(weight, 1e-300)
    seen[:, ahead:] = np.cumsum(known, axis=1)
    return errors, seen


def _window_mean(values: Series, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Series:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: Series = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def _trailing_mean(values: Series, width: int) -> Series:
    ends = np.arange(1, values.size + 1)
    return _window_mean(values, np.maximum(0, ends - width), ends)


def _centred_mean(values: Series, half: int) -> Series:
    if half == 0:
        return values
    at = np.arange(values.size)
    return _window_mean(values, np.maximum(0, at - half), np.minimum(values.size, at + half + 1))


def _shifted(values: Series, lag: int) -> Series:
    found = np.full(values.size, np.nan)
    if lag < values.size:
        found[lag:] = values[: values.size - lag]
    return found


def _since(first: int, values: Series) -> Series:
    found = values.copy()
    found[:first] = np.nan
    return found


def _mean(rows: Series) -> Series:
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    means = np.where(known, rows, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, means, np.nan)


def _median(rows: Series) -> Series:
    ranked = np.sort(rows, axis=0)  # NaN comes last
    count = np.maximum(1, np.isfinite(rows).sum(axis=0))
    at = np.arange(rows.shape[1])
    medians: Series = (ranked[(count - 1) // 2, at] + ranked[count // 2, at]) / 2
    return medians
