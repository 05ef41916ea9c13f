"""From measured rounds to the figures of the pipeline's tables: medians over rounds, and the aims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.gateway_parts.figures import MB, Aim, ratio
from benchmarks.gateway_parts.processes import Usage
from benchmarks.pipeline_parts.measures import Run, Sample

Cell = tuple[str, int]
"""A measure and the number of workers (our routers)."""
Round = Mapping[Cell, Mapping[str, Sample]]
"""By cell, then by contestant."""
Value = Callable[[Run], float | None]

JOBS_PER_S = 400.0
P50_MS = 3.0
P99_MS = 10.0


def rate(run: Run) -> float:
    """Jobs per second."""
    return run.per_s


def p50(run: Run) -> float | None:
    """ms from the POST to the backend."""
    return run.way_p50


def p99(run: Run) -> float | None:
    """ms from the POST to the backend."""
    return run.way_p99


OURS = ("us", "us-vllm")
"""Our stack with the backend registered as a llama.cpp (a connection a job), and as a vLLM (kept ones)."""


@dataclass(frozen=True)
class IdleCost:
    """What one service costs while nothing happens: share of a core, resident MB."""

    cores: float
    rss_mb: float


@dataclass(frozen=True)
class Results:
    """Everything of one run; ``rounds`` holds what succeeded only."""

    labels: Mapping[str, str]
    rounds: Sequence[Round]
    memory: Mapping[str, Mapping[str, Usage]]
    idle: Mapping[str, IdleCost] = field(default_factory=dict)
    idle_s: float = 0.0
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()

    def samples(self, cell: Cell, name: str) -> list[Sample]:
        return [one[cell][name] for one in self.rounds if name in one.get(cell, {})]

    def figure(self, cell: Cell, name: str, value: Value) -> float | None:
        """The median over the rounds."""
        known = [found for one in self.samples(cell, name) if (found := value(one.run)) is not None]
        return statistics.median(known) if known else None

    def against(self, cell: Cell, name: str, other: str, value: Value) -> float | None:
        """How many times the other's figure of the same round, the median over the rounds."""
        both = [one[cell] for one in self.rounds if {name, other} <= one.get(cell, {}).keys()]
        found = [ratio(value(one[name].run), value(one[other].run)) for one in both]
        known = [times for times in found if times is not None]
        return statistics.median(known) if known else None

    def cpu_ms(self, cell: Cell, name: str) -> dict[str, float]:
        """CPU milliseconds a job by part, medians over the rounds."""
        each = [one.cpu_ms_each for one in self.samples(cell, name)]
        parts = each[0] if each else {}
        return {part: statistics.median(one[part] for one in each) for part in parts}

    def rss_mb(self, name: str) -> dict[str, float]:
        return {part: used.rss_bytes / MB for part, used in self.memory.get(name, {}).items()}

    def peers(self, cell: Cell, value: Value) -> dict[str, float]:
        """The figures of all others."""
        found = {name: self.figure(cell, name, value) for name in self.labels if name not in OURS}
        return {name: figure for name, figure in found.items() if figure is not None}

    @property
    def others(self) -> tuple[float, float]:
        """Cores used by other work meanwhile: the median over all samples, and the most."""
        found = [
            one.others for taken in self.rounds for samples in taken.values() for one in samples.values()
        ]
        return (statistics.median(found), max(found)) if found else (0.0, 0.0)


def aims(results: Results, us: str = OURS[0]) -> list[Aim]:
    """What the project set itself for the way of a job; ``us``: as which of ``OURS``."""
    found = []
    for workers in (1, 2):
        ours = results.figure(("many", workers), us, rate)
        text = f"jobs/s at 32 with {workers} at least {JOBS_PER_S:g}"
        found.append(Aim(text, _shown(ours), None if ours is None else ours >= JOBS_PER_S))
        found.append(_most(results, us, ("many", workers)))
        found += [_least(results, us, (name, workers), shown) for name, shown in _IN_FLIGHT.items()]
    for name in ("alone", "one"):
        for value, limit, which in ((p50, P50_MS, "p50"), (p99, P99_MS, "p99")):
            ours = results.figure((name, 1), us, value)
            text = f"POST to backend {which} {_IN_FLIGHT[name]} at most {limit:g} ms"
            found.append(Aim(text, _shown(ours, " ms"), None if ours is None else ours <= limit))
    return found


_IN_FLIGHT = {"alone": "at 1, rested", "one": "at 1", "many": "at 32"}


def _most(results: Results, us: str, cell: Cell) -> Aim:
    theirs = results.peers(cell, rate)
    best = max(theirs, key=lambda name: theirs[name], default=None)
    times = results.against(cell, us, best, rate) if best is not None else None
    text = f"jobs/s at 32 with {cell[1]} at least the fastest peer's"
    shown = "-" if times is None or best is None else f"{times:.2f} x {results.labels[best]}"
    return Aim(text, shown, None if times is None else times >= 1)


def _least(results: Results, us: str, cell: Cell, shown: str) -> Aim:
    theirs = results.peers(cell, p99)
    best = min(theirs, key=lambda name: theirs[name], default=None)
    times = results.against(cell, us, best, p99) if best is not None else None
    said = "-" if times is None or best is None else f"{times:.2f} x {results.labels[best]}"
    text = f"p99 {shown} with {cell[1]} at most the lowest peer's"
    return Aim(text, said, None if times is None else times <= 1)


def _shown(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3g}{unit}"
