"""``benchmark``: measure a model with real requests, behind all live ones."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from services.cli.blocks import Block, Cell, Note, Table, Tone, columns, fields, row
from services.cli.client import Api, Json, Query, open_api
from services.cli.command import Command
from services.cli.failures import Refused
from services.cli.options import AsJson, ModelName, Url
from services.cli.screen import Screen
from services.cli.wording import number, span, toned

_DURATION_S = 30.0
_SPREADS = (
    ("ttft_ms", "time to first token, ms"),
    ("latency_ms", "latency, ms"),
    ("queue_wait_ms", "wait in the queue, ms"),
    ("prefill_tokens_per_second", "prefill, tokens/s"),
    ("decode_tokens_per_second", "decode, tokens/s"),
)


def benchmark(
    model: ModelName,
    duration: Annotated[
        float, typer.Option("--duration", "-d", min=0.5, max=300, metavar="SECONDS", help="How long to send.")
    ] = _DURATION_S,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, max=64, metavar="N", help="Requests at once.")
    ] = 1,
    count: Annotated[
        int | None, typer.Option("--count", min=1, metavar="N", help="At most so many requests.")
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, metavar="N", help="Of each request.")
    ] = 128,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, metavar="N", help="Output of each.")] = 64,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    query: Query = {
        "model_name": model,
        "duration_s": duration,
        "concurrency": concurrency,
        "count": count,
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
    }
    screen = Screen(as_json=as_json)
    body = _measured(open_api(url), screen, query, duration)
    screen.show(body, *benchmark_blocks(body))
    if body["state"] != "succeeded":
        error = body["error"] or {"type": body["state"], "detail": ""}
        raise Refused(f"benchmark of {model} {body['state']}: {error['type']} {error['detail']}".rstrip())


def _measured(api: Api, screen: Screen, query: Query, duration_s: float) -> Json:
    started = time.monotonic()
    with screen.progress() as progress:

        def meanwhile() -> None:
            passed_s = time.monotonic() - started
            doing = "measuring" if passed_s < duration_s else "waiting for the last answers of"
            progress(f"{doing} {query['model_name']}", min(1.0, passed_s / duration_s))

        # One call that lasts as long as the benchmark: the api cancels it once this connection is gone.
        return api.call("POST", "/v1/gpu/benchmark-model", query, silence_s=None, meanwhile=meanwhile).body


def benchmark_blocks(body: Json) -> list[Block]:
    """What was measured."""
    errors = ", ".join(f"{count} {name}" for name, count in body["errors"].items())
    served = ", ".join(f"{name} ({count})" for name, count in body["served_by"].items())
    levels = ", ".join(f"{one['gpu']} {one['pressure']}/{one['thermal']}" for one in body["levels"])
    summary = fields(
        ("model", body["model"]),
        ("state", toned(body["state"])),
        ("requests", f"{body['succeeded']} of {body['requests']} succeeded"),
        ("errors", Cell(errors, Tone.BAD)),
        ("served by", served),
        ("output", f"{number(body['output_tokens_per_second'])} tokens/s, {body['output_tokens']} tokens"),
        ("memory/heat", levels),
        ("yielded", span(body["yielded_ms"]) + " to live traffic" if body["yielded_ms"] else ""),
        ("ended early", Cell(body["ended_early"] or "", Tone.WARNING)),
        ("benchmark", body["benchmark_id"]),
    )
    rows = (
        row(words, *(number(body[name][part]) for part in ("p50", "p90", "p99", "mean")))
        for name, words in _SPREADS
        if body[name] is not None
    )
    table = Table(
        columns("MEASURED", "P50>", "P90>", "P99>", "MEAN>"), tuple(rows), empty="nothing was measured"
    )
    simulated = [Note(Cell("SIMULATED, not real: these are a simulated model's figures", Tone.WARNING))]
    return [*(simulated if body["simulated"] else []), summary, table]


COMMAND = Command(
    name="benchmark",
    run=benchmark,
    summary="Measure a model with real requests.",
    more="They go through the queue behind all others; Ctrl-C cancels them.",
    examples=("benchmark bi-medix2", "benchmark bi-medix2 --duration 10 --concurrency 4 --json"),
)
