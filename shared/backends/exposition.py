"""The samples of a Prometheus text exposition, as far as a probe needs them."""

from __future__ import annotations

import math
from collections.abc import Iterable

Sample = tuple[str, str, float]
"""Metric name, its labels as they stand between the braces, and the value."""


def parse(text: str) -> list[Sample]:
    """All samples of a scrape, in order; lines that are no sample are skipped."""
    samples: list[Sample] = []
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        series, labels, rest = _split(line)
        value = _value(rest)
        if value is not None:
            samples.append((series, labels, value))
    return samples


def values(samples: Iterable[Sample], *names: str, label: str = "") -> list[float]:
    """The values of all series of the first of ``names`` that occurs (newest name first).

    ``label`` keeps only series whose labels contain it, such as ``sleep_state="awake"``.
    """
    kept = [sample for sample in samples if sample[0] in names and label in sample[1]]
    found = next((name for name in names if any(name == sample[0] for sample in kept)), None)
    return [value for series, _, value in kept if series == found]


def total(samples: Iterable[Sample], *names: str) -> int | None:
    """The sum of a count over all its series, None if it does not occur."""
    found = values(samples, *names)
    return round(math.fsum(found)) if found else None


def _split(line: str) -> tuple[str, str, str]:
    if "{" in line:
        series, _, rest = line.partition("{")
        labels, _, tail = rest.rpartition("}")
        return series.strip(), labels, tail
    series, _, tail = line.partition(" ")
    return series, "", tail


def _value(rest: str) -> float | None:
    words = rest.split()
    try:
        value = float(words[0]) if words else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
