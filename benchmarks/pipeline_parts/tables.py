"""The results of the pipeline benchmark as Markdown and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.gateway_parts.tables import head, row
from benchmarks.pipeline_parts.contestants import CONTESTANTS
from benchmarks.pipeline_parts.figures import OURS, Cell, Results, Value, aims, p50, p99, rate

_WORKERS = (1, 2)
_VERDICTS = {True: "met", False: "missed", None: "not known: the other was not measured"}


def markdown(results: Results) -> str:
    """All tables, ready for the README."""
    blocks = [_loads(results, workers) for workers in _WORKERS]
    blocks += [_costs(results), _idle(results), *(_aims(results, us) for us in _ours(results))]
    blocks.append(_promises(results))
    median, most = results.others
    notes = [
        f"Other work on the machine meanwhile: {median:.2f} cores in the median, {most:.2f} at most. "
        "From about 0.2 on, trust CPU a job only, and that by and large."
    ]
    notes += [f"{name}: left out, {reason}" for name, reason in results.skipped.items()]
    blocks.append([f"- {note}" for note in (*notes, *results.failures)])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def plain(results: Results) -> dict[str, Any]:
    """Every sample and the aims, for ``--json``."""
    return {
        "labels": dict(results.labels),
        "skipped": dict(results.skipped),
        "failures": list(results.failures),
        "rounds": [
            {
                f"{measure} {workers}": {name: sample.plain for name, sample in samples.items()}
                for (measure, workers), samples in one.items()
            }
            for one in results.rounds
        ],
        "rss_mb": {name: results.rss_mb(name) for name in results.labels},
        "idle": {part: asdict(cost) for part, cost in results.idle.items()},
        "aims": {us: [asdict(aim) for aim in aims(results, us)] for us in _ours(results)},
    }


def _loads(results: Results, workers: int) -> list[str]:
    rows = head(
        f"{workers} worker{'s' if workers > 1 else ''}", "at 1, rested: p50, ms", "p99", "at 1: p50", "p99",
        "jobs/s", "at 32: p50", "p99", "jobs/s", "202 after, p50 at 1",
    )  # fmt: skip
    for name, label in results.labels.items():
        cells = [label]
        for measure in ("alone", "one", "many"):
            cells += [_figure(results, (measure, workers), name, value) for value in (p50, p99)]
            if measure != "alone":
                cells.append(_figure(results, (measure, workers), name, rate, ",.0f"))
        cells.append(_figure(results, ("one", workers), name, lambda run: run.answer_p50))
        rows.append(row(cells))
    return rows


def _costs(results: Results) -> list[str]:
    rows = head(
        "cost", "CPU ms a job at 32, 1 worker", "by process", "jobs/s that fill a core", "at 1, 1 worker",
        "at 32, 2 workers", "RSS after the load, MB", "by process",
    )  # fmt: skip
    for name, label in results.labels.items():
        at_32 = results.cpu_ms(("many", 1), name)
        rss = results.rss_mb(name)
        sums = [_sum(results.cpu_ms(cell, name)) for cell in (("one", 1), ("many", 2))]
        full = f"{1000 / sum(at_32.values()):,.0f}" if sum(at_32.values()) else "-"
        cells = [label, _sum(at_32), _parts(at_32, ".2f"), full, *sums, f"{sum(rss.values()):.0f}"]
        rows.append(row([*cells, _parts(rss, ".0f")]))
    return rows


def _idle(results: Results) -> list[str]:
    if not results.idle:
        return []
    cores = sum(cost.cores for cost in results.idle.values())
    memory = sum(cost.rss_mb for cost in results.idle.values())
    rows = head(f"idle for {results.idle_s:g} s", "% of a core", "RSS, MB")
    rows += [
        row([part, f"{100 * cost.cores:.2f}", f"{cost.rss_mb:.0f}"]) for part, cost in results.idle.items()
    ]
    return [*rows, row(["all", f"{100 * cores:.2f}", f"{memory:.0f}"])]


def _ours(results: Results) -> list[str]:
    return [name for name in OURS if name in results.labels]


def _aims(results: Results, us: str) -> list[str]:
    found = [row([aim.text, aim.measured, _VERDICTS[aim.met]]) for aim in aims(results, us)]
    return head(f"aims: {results.labels[us]}", "measured", "") + found


def _promises(results: Results) -> list[str]:
    return [
        *head("", "what a job survives, as configured here"),
        *(row([label, CONTESTANTS[name].promise]) for name, label in results.labels.items()),
    ]


def _figure(results: Results, cell: Cell, name: str, value: Value, form: str = ".2f") -> str:
    found = results.figure(cell, name, value)
    return "-" if found is None else f"{found:{form}}"


def _sum(parts: dict[str, float]) -> str:
    return f"{sum(parts.values()):.2f}" if parts else "-"


def _parts(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{part} {value:{form}}" for part, value in values.items())
