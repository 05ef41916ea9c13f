"""The interval around a forecast: conformal quantiles of its past errors, corrected online by its misses."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, isfinite, log

from shared.decision.forecast_rules import Series

_MOST_ORIGINS = 400
"""Past forecasts that are looked at, evenly spaced; more cost time and tell little."""
_ORIGINS_PER_HORIZON = 8
"""Errors of forecasts made within one horizon are nearly the same error."""
_FEWEST_ERRORS = 6
_OVERLAP = 0.3
"""How far the level is raised for errors that overlap: 1 would be right if those of one horizon were one
error, 0 if they were independent. Tuned on ServeGen and generated series, as are the gains below."""
_GAIN = 1.0
"""Of each way: log of its widening, or rise of its level, after misses all through one horizon."""
_GAIN_OF_BOTH = 0.2
"""The same for the widening of the two ways together; two gains of 1 in a row would swing."""
_LEAST_LOG, _MOST_LOG = -log(4.0), log(4.0)
_LOWEST_BY, _HIGHEST_BY = -0.3, 0.1
_LOSS_POWER = 2
"""A way counts by (least loss / own loss) to this power: 1 to 8 make no difference that can be told."""
_FLAT = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """``half_width`` in the unit of the errors; ``coverage`` is the share of past truths that lay inside.

    A quantile alone covers 76 to 90 % of ServeGen at 6 and 24 h: the second week is livelier than the
    first, and eight days hold few errors of a day's horizon that don't overlap.
    """

    half_width: float
    coverage: float
    checked: int


class _Correction:
    """A sum that rises by ``gain`` when all is missed for one horizon, and falls where all holds (adaptive
    conformal inference, Gibbs & Candes 2021). Bounded, or years of hits would have to be paid back."""

    __slots__ = ("_least", "_most", "_step", "value")

    def __init__(self, gain: float, lag: int, least: float, most: float) -> None:
        self.value = 0.0
        self._step, self._least, self._most = gain / lag, least, most

    def learn(self, surplus: float) -> None:
        """``surplus`` is 1 for a miss and 0 for a hit, less the share that may miss."""
        self.value = min(self._most, max(self._least, self.value + self._step * surplus))


def past_interval(errors: Series, ahead: int, level: float) -> Interval | None:
    """The interval for a forecast made now, or None where too few past ones have come true.

    ``errors[t]`` is the absolute error of the forecast made at step ``t`` for ``t + ahead``, NaN where it
    isn't known. Past intervals are made again one after the other, each from what was known at its time:
    whenever one missed, those after it became wider, whenever one held, a little narrower.
    """
    stride = max(1, min(ahead, errors.size) // _ORIGINS_PER_HORIZON, -(-errors.size // _MOST_ORIGINS))
    kept: list[float] = errors[(errors.size - 1) % stride :: stride].tolist()
    lag = -(-ahead // stride)
    ways = _Ways(lag, level, _FLAT * (1.0 + max((error for error in kept if isfinite(error)), default=0.0)))
    said: list[_Said | None] = [None] * len(kept)
    known: list[float] = []  # sorted, what had come true by then
    misses = checked = 0
    for at in range(lag, len(kept)):
        error, then = kept[at - lag], said[at - lag]
        if isfinite(error):
            insort(known, error)
            if then is not None:
                ways.learn(then, error)
        if len(known) < _FEWEST_ERRORS:
            continue
        now = said[at] = ways.say(known)
        if isfinite(kept[at]):
            checked += 1
            misses += ways.missed(now.half_width, kept[at])
    latest = said[-1] if said else None
    return Interval(latest.half_width, 1.0 - misses / checked, checked) if latest and checked else None


@dataclass(frozen=True, slots=True)
class _Said:
    half_width: float
    of_ways: Sequence[float]


class _Ways:
    """Two ways to answer misses, each with its own correction from its own misses, and their mean.

    One widens the quantile: right where errors grow all together. One raises its level up to the largest
    error: right where nothing happens for days and then something does, and the quantile is still zero.
    They are weighted by their pinball losses up to then, so that neither must be chosen.
    """

    def __init__(self, lag: int, level: float, flat: float) -> None:
        self._lag, self._level, self._flat = lag, level, flat
        self._widening = _Correction(_GAIN, lag, _LEAST_LOG, _MOST_LOG)
        self._raising = _Correction(_GAIN, lag, _LOWEST_BY, _HIGHEST_BY)
        self._both = _Correction(_GAIN_OF_BOTH, lag, _LEAST_LOG, _MOST_LOG)
        self._losses = [flat, flat]

    def say(self, known: Sequence[float]) -> _Said:
        """The half width now; ``known`` is sorted and not empty."""
        independent = max(1.0, len(known) / self._lag)
        share = self._level * (1.0 + _OVERLAP / independent)
        widened = exp(self._widening.value) * _quantile(known, share)
        raised = _quantile(known, share + self._raising.value)
        least = min(self._losses)
        weights = [(least / loss) ** _LOSS_POWER for loss in self._losses]
        mean = (weights[0] * widened + weights[1] * raised) / sum(weights)
        return _Said(exp(self._both.value) * mean, (widened, raised))

    def learn(self, said: _Said, error: float) -> None:
        """One error that came true, and what had been said about it."""
        may_miss = 1.0 - self._level
        self._both.learn(self.missed(said.half_width, error) - may_miss)
        for way, (correction, half_width) in enumerate(
            zip((self._widening, self._raising), said.of_ways, strict=True)
        ):
            correction.learn(self.missed(half_width, error) - may_miss)
            self._losses[way] += may_miss * half_width + max(0.0, error - half_width)

    def missed(self, half_width: float, error: float) -> bool:
        """Whether the truth lay outside, rounding apart."""
        return error > half_width + self._flat


def _quantile(ranked: Sequence[float], share: float) -> float:
    return ranked[min(len(ranked), max(1, ceil(min(1.0, share) * len(ranked)))) - 1]
