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


@dataclass(frozen=True)
class Case:
    """A series in even steps. ``warm_up_h``: origins begin there, at the earliest after three horizons."""

    name: str
    values: Series
    step_min: int
    warm_up_h: float = 48.0


@dataclass(frozen=True)
class Score:
    """Absolute errors of every method at the same origins, and how many intervals held the truth."""

    case: str
    hours: float
    ours: Series
    last: Series
    seasonal: Series
    line: Series
    covered: float

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
    rows, covered = [], []
    kept = KEPT_DAYS * MINUTES_PER_DAY // step
    for at in origins:
        known, truth = case.values[max(0, at + 1 - kept) : at + 1], float(case.values[at + ahead])
        found = project(known, step_min=step, hours=hours)
        if found.mid is None or found.low is None or found.high is None:
            continue
        rounding = 1e-9 * (1 + abs(truth))
        covered.append(found.low - rounding <= truth <= found.high + rounding)
        others = (float(known[-1]), _seasonal(known, ahead, step), _line(known, ahead, step))
        rows.append([abs(truth - said) for said in (found.mid, *others)])
    errors = np.array(rows).T
    ours, last, seasonal, line = errors
    return Score(case.name, hours, ours, last, seasonal, line, float(np.mean(covered)))


def traces(folder: Path) -> list[Case]:
    """ServeGen's rates, and the GPU telemetry read as a sample a minute.

    The telemetry lasts 37 minutes in all, so that an hour ahead can't be asked of it as it is: its rows
    (2 Hz, twelve runs one after the other) stand for minutes.
    """
    rates, telemetry = _columns(folder / _RATES), _columns(folder / _TELEMETRY)
    found = [Case(name, values, 10) for name, values in rates.items() if name != "t_s"]
    names = ("mem_used_mib", "gpu_util_pct", "gpu_temp_c")
    return found + [Case(name, telemetry[name], 1, warm_up_h=3.0) for name in names]


def traces_folder(given: str | None = None) -> Path | None:
    """The folder given, else the one beside the checkout if it is there."""
    folder = Path(given) if given else _BESIDE
    return folder if given or (folder / _RATES).exists() else None


def generated(seed: int, days: int = 16) -> list[Case]:
    """Daily seasons, weekends, evenings of gaming, bursts, a walk, noise, and nothing happening."""
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
    print("| series | hours | origins | / last value | its median | / day before | / line 2 h | covered |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
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
        score = evaluate(case, hours, every_min=240 if quick else 60 if case.step_min > 1 else 10)
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
            f"| {case.name} | {hours:g} | {score.ours.size} | {shown} | {100 * score.covered:.1f} % |",
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


if __name__ == "__main__":
    main()
