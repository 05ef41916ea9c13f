"""The results of the gateway benchmark as Markdown and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.gateway_parts.figures import Results, Value, aims, first, p50, p99, rate, ratio, tokens

OURS = ("us", "us-vllm")
_COMPARED = (
    "Everyone gets the same bytes over kept connections and has the same stub behind it. Registered as "
    "llama_cpp, we ask the stub for a stream whatever the client wants and put the JSON answer together "
    "(only so a real one frees the slot of a client that has gone); registered as vllm, we pass on what was "
    "asked, as the others do. Nobody checks a key. We admit, place and record every request as a job, "
    "LiteLLM reads and writes every answer anew, nginx and the routers pass it on. At 16 in flight times are "
    "mostly 16 / throughput, and throughput is one core / CPU a request."
)


def markdown(results: Results) -> str:
    """All tables, ready for the README."""
    blocks = [_answers(results), _streams(results), _costs(results), _ratios(results)]
    blocks += [_aims(results, name) for name in OURS if name in results.labels]
    notes = [f"{name}: left out, {reason}" for name, reason in results.skipped.items()]
    notes += list(results.failures)
    errors = {name: results.errors(name) for name in results.labels}
    notes += [f"{name}: {count} errors under load" for name, count in errors.items() if count]
    blocks += [[_COMPARED], [_bottleneck(results)], [_others(results)], [f"- {note}" for note in notes]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def plain(results: Results) -> dict[str, Any]:
    """Every sample and the aims, for ``--json``."""
    return {
        "labels": dict(results.labels),
        "skipped": dict(results.skipped),
        "failures": list(results.failures),
        "rounds": [
            {
                measure: {
                    name: {**sample.load.plain, "cpu_s": dict(sample.cpu_s), "others": sample.others}
                    for name, sample in samples.items()
                }
                for measure, samples in one.items()
            }
            for one in results.rounds
        ],
        "rss_mb": {name: results.rss_mb(name) for name in results.labels},
        "aims": {
            name: [asdict(aim) for aim in aims(results, name)] for name in OURS if name in results.labels
        },
    }


def _answers(results: Results) -> list[str]:
    rows = head(
        "JSON answers", "p50 at 1, ms", "added p50 at 1", "added p99 at 1", "requests/s at 1",
        "added p50 at 16", "added p99 at 16", "requests/s at 16",
    )  # fmt: skip
    for name, label in results.labels.items():
        cells = [label, _ms(results.figure("json_1", name, p50))]
        for measure in ("json_1", "json_16"):
            cells += [_added(results, measure, name, value) for value in (p50, p99)]
            cells.append(_count(results.figure(measure, name, rate)))
        rows.append(row(cells))
    return rows


def _streams(results: Results) -> list[str]:
    rows = head(
        "streams", "first token at 1, ms", "added at 1", "first token at 16", "added at 16",
        "its p99 at 16", "chunks/s at 32", "of nginx's",
    )  # fmt: skip
    for name, label in results.labels.items():
        cells = [label]
        for measure in ("stream_1", "stream_16"):
            cells += [_ms(results.figure(measure, name, first)), _added(results, measure, name, first)]
        cells.append(_ms(results.figure("stream_16", name, lambda load: load.first_p99)))
        cells.append(_count(results.figure("chunks_32", name, tokens)))
        cells.append(_times(results.against("chunks_32", name, "nginx", tokens)))
        rows.append(row(cells))
    return rows


def _added(results: Results, measure: str, name: str, value: Value) -> str:
    return "-" if name == "direct" else _ms(results.added(measure, name, value))


def _costs(results: Results) -> list[str]:
    rows = head("cost", "CPU ms a request at 16", "by process", "RSS after the load, MB", "by process")
    for name, label in results.labels.items():
        cpu, rss = results.cpu_ms(name), results.rss_mb(name)
        if name == "direct":
            continue
        cells = [label, f"{sum(cpu.values()):.3f}" if cpu else "-", _parts(cpu, ".3f")]
        rows.append(row([*cells, f"{sum(rss.values()):.0f}", _parts(rss, ".0f")]))
    return rows


def _ratios(results: Results) -> list[str]:
    rows = head(
        "ratios", "added p50 at 1: x nginx's", "LiteLLM's /", "requests/s at 16: x direct", "x nginx",
        "x LiteLLM", "CPU a request: x nginx's", "LiteLLM's /",
    )  # fmt: skip
    for name, label in results.labels.items():
        if name == "direct":
            continue
        three = (name, "nginx", "litellm")
        cpu = {other: sum(results.cpu_ms(other).values()) or None for other in three}
        rates = [results.against("json_16", name, other, rate) for other in ("direct", "nginx", "litellm")]
        cells = [
            results.added_against("json_1", name, "nginx", p50),
            results.added_against("json_1", "litellm", name, p50),
            *rates,
        ]
        cells += [ratio(cpu[name], cpu["nginx"]), ratio(cpu["litellm"], cpu[name])]
        rows.append(row([label, *map(_times, cells)]))
    return rows


def _aims(results: Results, name: str) -> list[str]:
    rows = head(f"aims: {results.labels[name]}", "measured", "")
    verdicts = {True: "met", False: "missed", None: "not known: the other was not measured"}
    return rows + [row([aim.text, aim.measured, verdicts[aim.met]]) for aim in aims(results, name)]


def _bottleneck(results: Results) -> str:
    """How one can tell that the generator and the stub are not what was measured."""
    rates = {name: results.figure("json_16", name, rate) or 0.0 for name in results.labels}
    direct = rates.pop("direct", 0.0)
    fastest = max(rates, key=lambda name: rates[name], default=None)
    if fastest is None or not rates[fastest]:
        return "Load generator and stub: no contestant to compare them with."
    shares = [
        results.figure(measure, fastest, lambda load: load.generator) or 0.0
        for measure in ("json_16", "chunks_32")
    ]
    return (
        f"Load generator and stub alone (direct) do {direct:,.0f} requests/s at 16, "
        f"{direct / rates[fastest]:.1f} times the fastest contestant ({results.labels[fastest]}); "
        f"the generator used {shares[0]:.0%} (JSON at 16) and {shares[1]:.0%} (chunks) of its core there."
    )


def _others(results: Results) -> str:
    median, most = results.others
    return (
        f"Other work on the machine meanwhile: {median:.2f} cores in the median, {most:.2f} at most. "
        "From about 0.2 on, trust the ratios only, and of those p50 and CPU."
    )


def _parts(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{part} {value:{form}}" for part, value in values.items()) if len(values) > 1 else ""


def head(*titles: str) -> list[str]:
    """The title row and the line under it."""
    return [row(titles), row(["---"] * len(titles))]


def row(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
