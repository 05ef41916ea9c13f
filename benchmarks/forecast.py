"""The forecast against last value, day before and a line: `python -m benchmarks.forecast [--quick]`.

Traces come from `--traces FOLDER`, else from ../shared/traces where that is; without, generated series alone.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.decision.forecast import HORIZONS_NEEDED, KEPT_DAYS, LEVEL, project
from shared.decision.forecast_rules import MINUTES_PER_DAY

Series = NDArray[np.float64]

HOURS = (1.0, 6.0, 24.0)
FEWEST_ORIGINS = 30
_LINE_H = 2
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "traces"
_RATES = "servegen_rate_10min.csv"
_TELEMETRY = "vllm_24gib_gpu_telemetry_2hz.csv"
_TELEMETRY_SCALES_MIN = (1, 5, 10)
LEAST_COVERED, MOST_COVERED = 0.85, 0.95
"""What an interval for ``LEVEL`` is held to."""


@dataclass(frozen=True)
class Case:
    """A series in even steps. ``warm_up_h``: origins begin there, at the earliest after three horizons."""

    name: str
    values: Series
    step_min: int
    warm_up_h: float = 48.0


@dataclass(frozen=True)
class Score:
    """Absolute errors of every method at the same origins, and how many intervals held the truth.

    ``covered`` counts truths on the edge of an interval as held, ``inside`` doesn't, but for 0, where all
    intervals end. They differ where values repeat exactly: the interval of a card that stands still has no
    width, and holds what mostly comes.
    """

    case: str
    hours: float
    ours: Series
    last: Series
    seasonal: Series
    line: Series
    covered: float
    inside: float

    def calibrated(self) -> bool:
        """Whether the promised share lies between ``inside`` and ``covered``, give or take five points.

        Without repeated values both are the same. With them, no interval around the last value covers less
        than the share of truths that equal it, and nine tenths can lie in between only.
        """
        return self.covered >= LEAST_COVERED and self.inside <= MOST_COVERED

    def stood_still(self) -> float:
        """The share of truths that were exactly the last value: an interval without width covers them."""
        return float(np.mean(self.last == 0.0))

    def ratio(self, median: bool = False) -> float:
        """Our error over that of the last value; below 1 is better."""
        middle = np.median if median else np.mean
        ours, last = float(middle(self.ours)), float(middle(self.last))
        # The median of a series that mostly stands still is 0 for the last value: nothing to divide by.
        return ours / last if last > 0 else (1.0 if ours <= 0 else math.nan)

    def over(self, errors: Series) -> float:
        """Our mean error over that of another method, where that one says something; else NaN."""
        both = np.isfinite(errors)
        if not both.any():
            return math.nan
        theirs = float(errors[both].mean())
        return float(self.ours[both].mean()) / theirs if theirs > 0 else math.nan


def evaluate(case: Case, hours: float, every_min: int) -> Score | None:
    """Forecast from every origin with what was known there; None for a series too short to tell."""
    step, ahead = case.step_min, max(1, round(hours * 60 / case.step_min))
    first = round(max(case.warm_up_h, HORIZONS_NEEDED * hours) * 60 / step)
    origins = range(first, case.values.size - ahead, max(1, every_min // step))
    if len(origins) < FEWEST_ORIGINS:
        return None
    rows, held = [], []
    kept = KEPT_DAYS * MINUTES_PER_DAY // step
    for at in origins:
        known, truth = case.values[max(0, at + 1 - kept) : at + 1], float(case.values[at + ahead])
        found = project(known, step_min=step, hours=hours)
        if found.mid is None or found.low is None or found.high is None:
            continue
        rounding = 1e-9 * (1 + abs(truth))
        covered = found.low - rounding <= truth <= found.high + rounding
        above = found.low <= rounding or truth > found.low + rounding
        held.append((covered, above and truth < found.high - rounding))
        others = (float(known[-1]), _seasonal(known, ahead, step), _line(known, ahead, step))
        rows.append([abs(truth - said) for said in (found.mid, *others)])
    errors = np.array(rows).T
    ours, last, seasonal, line = errors
    covering, inside = np.mean(held, axis=0).tolist()
    return Score(case.name, hours, ours, last, seasonal, line, covering, inside)


def traces(folder: Path) -> list[Case]:
    """ServeGen's rates, and the GPU telemetry read at three scales.

    The telemetry lasts 37 minutes in all, so that an hour ahead can't be asked of it as it is: each of its
    rows (2 Hz, twelve runs one after the other) stands for a minute, which gives 75 h. A day ahead needs
    three days of history and more to be judged by: at 5 minutes a row origins span 12 of its horizons, at
    10, the step of ServeGen, 27.
    """
    rates, telemetry = _columns(folder / _RATES), _columns(folder / _TELEMETRY)
    found = [Case(name, values, 10) for name, values in rates.items() if name != "t_s"]
    names = ("mem_used_mib", "gpu_util_pct", "gpu_temp_c")
    return found + [
        Case(f"{name} @ {step} min", telemetry[name], step, warm_up_h=3.0)
        for step in _TELEMETRY_SCALES_MIN
        for name in names
    ]


def traces_folder(given: str | None = None) -> Path | None:
    """The folder given, else the one beside the checkout if it is there."""
    folder = Path(given) if given else _BESIDE
    return folder if given or (folder / _RATES).exists() else None


def generated(seed: int, days: int = 16) -> list[Case]:
    """Daily seasons, weekends, evenings of gaming, bursts, a walk, noise, nothing happening, and steps."""
    step = 10
    rng = np.random.default_rng(seed)
    size = days * MINUTES_PER_DAY // step
    day = np.arange(size) * step / MINUTES_PER_DAY
    wave, drift = np.sin(2 * np.pi * day), _autoregressive(rng, size, step)
    kinds = {
        "daily": np.maximum(0, 10 + 5 * wave + 1.5 * drift + 0.5 * rng.normal(size=size)),
        "daily_memory": 700 + 4000 * np.maximum(0, wave) + 400 * np.abs(drift) + rng.normal(size=size) * 20,
        "weekly": np.maximum(0, (10 + 6 * wave) * np.where(day % 7 < 5, 1, 0.5) + drift),
        "evenings": _evenings(rng, days, step),
        "bursts": _bursts(rng, size, step),
        "walk": np.abs(20 + np.cumsum(rng.normal(size=size)) * 0.2),
        "noise": np.maximum(0, 10 + rng.normal(size=size)),
        "flat": np.full(size, 7.0),
        "steps": _steps(rng, size, step),
        "card": _card(rng, size, step),
    }
    return [Case(f"{kind} #{seed}", values, step) for kind, values in kinds.items()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", help="folder of the traces")
    parser.add_argument("--quick", action="store_true", help="few origins and one seed")
    given = parser.parse_args()
    folder = traces_folder(given.traces)
    if folder is None:
        print("no traces found: generated series alone (--traces FOLDER)\n")
    cases = ([] if folder is None else traces(folder)) + [
        case for seed in ((1,) if given.quick else (1, 2, 3)) for case in generated(seed)
    ]
    print("Errors of the forecast over those of other methods; below 1 is better.\n")
    print("Still: truths that are exactly the last value. Covered: with those on the edge of the interval")
    print(f"(without them), * where {LEVEL:.0%} isn't between the two, give or take five points.\n")
    methods = ("/ last value", "its median", "/ day before", "/ line 2 h")
    columns = ("series", "hours", "origins", *methods, "still", "covered")
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    scores = [score for case in cases for score in _rows(case, given.quick)]
    for hours in HOURS:
        ratios = [score.ratio() for score in scores if score.hours == hours]
        covered = [score.covered for score in scores if score.hours == hours]
        print(
            f"\nmedian of all series at {hours:g} h: {np.median(ratios):.2f} of the last value's error, "
            f"{100 * np.median(covered):.0f} % covered (wanted: {100 * LEVEL:.0f})"
        )


def _rows(case: Case, quick: bool) -> Iterator[Score]:
    for hours in HOURS:
        score = evaluate(case, hours, every_min=240 if quick else 10 * min(case.step_min, 6))
        if score is None:
            continue
        figures = (
            score.ratio(),
            score.ratio(median=True),
            score.over(score.seasonal),
            score.over(score.line),
        )
        shown = " | ".join("-" if math.isnan(figure) else f"{figure:.2f}" for figure in figures)
        print(
            f"| {case.name} | {hours:g} | {score.ours.size} | {shown} | {score.stood_still():.1%} "
            f"| {score.covered:.1%} ({score.inside:.1%}){'' if score.calibrated() else ' *'} |",
            flush=True,
        )
        yield score


def _seasonal(known: Series, ahead: int, step: int) -> float:
    lag = MINUTES_PER_DAY // step - ahead
    return float(known[-1 - lag]) if known.size > lag else math.nan


def _line(known: Series, ahead: int, step: int) -> float:
    recent = known[-_LINE_H * 60 // step :]
    slope, start = np.polyfit(np.arange(recent.size), recent, 1)
    return float(start + slope * (recent.size - 1 + ahead))


def _columns(path: Path) -> dict[str, Series]:
    with path.open(encoding="utf-8", newline="") as file:
        rows: Sequence[dict[str, str]] = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def _autoregressive(rng: np.random.Generator, size: int, step: int) -> Series:
    """Deviations that last about three hours, of variance 1."""
    stay = math.exp(-step / 180)
    found = np.zeros(size)
    for at in range(1, size):
        found[at] = stay * found[at - 1] + math.sqrt(1 - stay * stay) * rng.normal()
    return found


def _evenings(rng: np.random.Generator, days: int, step: int) -> Series:
    found = np.full(days * MINUTES_PER_DAY // step, 0.6)
    for day in range(days):
        if rng.random() < 0.7:
            start = round((day * 24 + 19 + rng.normal()) * 60 / step)
            found[start : start + round(rng.uniform(1, 4) * 60 / step)] = rng.uniform(6, 9)
    quiet: Series = found + 0.02 * rng.normal(size=found.size)
    return quiet


def _bursts(rng: np.random.Generator, size: int, step: int) -> Series:
    found, at, busy = np.full(size, 0.5), 0, False
    while at < size:
        length = 1 + int(rng.exponential((120 if busy else 360) / step))
        if busy:
            found[at : at + length] = rng.uniform(2, 10)
        at, busy = at + length, not busy
    return found


def _steps(rng: np.random.Generator, size: int, step: int) -> Series:
    """A level that holds for eight hours on average, then any other."""
    found, at = np.zeros(size), 0
    while at < size:
        length = 1 + int(rng.exponential(8 * 60 / step))
        found[at : at + length] = rng.uniform(500, 24_000)
        at += length
    return found


def _card(rng: np.random.Generator, size: int, step: int) -> Series:
    """A vLLM pool: still for five days, then reloaded every eight hours or so, to almost the same size."""
    found, at = np.full(size, 22_535.0), 5 * MINUTES_PER_DAY // step
    while at < size:
        at += 1 + int(rng.exponential(8 * 60 / step))
        length = 1 + int(rng.exponential(3 * 60 / step))
        busy = found[at : at + length]
        busy[:] = rng.uniform(21_000, 24_400, size=busy.size)
        at += length
        found[at:] = 22_535 + rng.integers(-40, 41)
    return found


if __name__ == "__main__":
    main()
