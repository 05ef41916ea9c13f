"""The interval around a forecast: a conformal quantile of its past errors, corrected by its misses."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from math import ceil, exp, isfinite

from shared.decision.forecast_rules import Series

_MOST_ORIGINS = 400
"""Past forecasts that are looked at, evenly spaced; more cost time and tell little."""
_ORIGINS_PER_HORIZON = 8
"""Errors of forecasts made within one horizon are nearly the same error."""
_FEWEST_ERRORS = 6
_OVERLAP = 0.35
"""How far the level is raised for errors that overlap: 1 would be right if those of one horizon were one
error, 0 if they were independent. Tuned on ServeGen and generated series, as is the gain below."""
_GAIN = 1.0
"""Log of the widening after misses all through one horizon (less the share that may miss)."""
_LEAST_SCALE, _MOST_SCALE = 0.25, 4.0
_FLAT = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """``half_width`` in the unit of the errors; ``coverage`` is the share of past truths that lay inside.

    Quantiles alone cover 76 to 90 % of ServeGen at 6 and 24 h: the second week is livelier than the
    first, and eight days hold few errors of a day's horizon that don't overlap.
    """

    half_width: float
    coverage: float
    checked: int


def past_interval(errors: Series, ahead: int, level: float) -> Interval | None:
    """The interval for a forecast made now, or None where too few past ones have come true.

    ``errors[t]`` is the absolute error of the forecast made at step ``t`` for ``t + ahead``, NaN where it
    isn't known. Past intervals are made again one after the other, each from what was known at its time:
    whenever one missed, those after it became wider, whenever one held, a little narrower.
    """
    stride = max(1, min(ahead, errors.size) // _ORIGINS_PER_HORIZON, -(-errors.size // _MOST_ORIGINS))
    kept: list[float] = errors[(errors.size - 1) % stride :: stride].tolist()
    lag = -(-ahead // stride)
    flat = _FLAT * (1.0 + max((error for error in kept if isfinite(error)), default=0.0))
    missed: list[bool | None] = [None] * len(kept)
    known: list[float] = []  # sorted, what had come true by then
    scale, half_width = 1.0, None
    for at in range(lag, len(kept)):
        if isfinite(kept[at - lag]):
            insort(known, kept[at - lag])
        scale = _corrected(scale, missed[at - lag], lag, level)
        if len(known) < _FEWEST_ERRORS:
            continue
        half_width = scale * _quantile(known, lag, level)
        if isfinite(kept[at]):
            missed[at] = kept[at] > half_width + flat
    checked = [miss for miss in missed if miss is not None]
    if half_width is None or not checked:
        return None
    return Interval(half_width, 1.0 - sum(checked) / len(checked), len(checked))


def _corrected(scale: float, missed: bool | None, lag: int, level: float) -> float:
    if missed is None:
        return scale
    return min(_MOST_SCALE, max(_LEAST_SCALE, scale * exp(_GAIN / lag * (missed - (1.0 - level)))))


def _quantile(ranked: list[float], lag: int, level: float) -> float:
    independent = max(1.0, len(ranked) / lag)
    share = min(1.0, level * (1.0 + _OVERLAP / independent))
    return ranked[min(len(ranked), ceil(share * len(ranked))) - 1]
