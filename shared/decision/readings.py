"""Readings that may be unknown: what is not a finite number counts as not read."""

from __future__ import annotations

from math import isfinite


def finite(reading: float | None) -> float | None:
    """The reading, or None where it is None, infinite or not a number."""
    return None if reading is None or not isfinite(reading) else reading
