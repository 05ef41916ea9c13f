"""From sparse one-minute buckets to the even steps that a forecast needs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.decision.forecast import KEPT_DAYS
from shared.decision.forecast_rules import MINUTES_PER_DAY, Series

_KEPT_MINUTES = KEPT_DAYS * MINUTES_PER_DAY
RATE_STEP_MIN = 5
"""Counts of single minutes are mostly chance: rates are means over five."""


def levels(buckets: Mapping[int, float], now_minute: int) -> Series:
    """A reading a minute up to and with ``now_minute``; NaN where there was none."""
    found = np.full(_KEPT_MINUTES, np.nan)
    first = now_minute - _KEPT_MINUTES + 1
    for minute, value in buckets.items():
        if first <= minute <= now_minute:
            found[minute - first] = value
    return found


def rates(counts: Mapping[int, int], now_minute: int) -> Series:
    """Requests a minute in steps of ``RATE_STEP_MIN``, up to the last minute that is over.

    Starts with the first request there was: before it the model may not have been there; after it a minute
    without a count is one without requests.
    """
    first = now_minute - _KEPT_MINUTES
    found = np.zeros(_KEPT_MINUTES)
    for minute, count in counts.items():
        if first <= minute < now_minute:
            found[minute - first] = count
    steps: Series = found.reshape(-1, RATE_STEP_MIN).mean(axis=1)
    busy = np.flatnonzero(steps)
    return steps[busy[0] :] if busy.size else steps[:0]
