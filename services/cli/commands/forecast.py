"""``forecast``: memory and requests some hours ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from services.cli.blocks import Block, Cell, Note, Table, Tone, columns, row
from services.cli.client import Json, open_api
from services.cli.command import Command
from services.cli.options import AsJson, Url
from services.cli.screen import Screen
from services.cli.wording import UNKNOWN, between, gigabytes, number, shown


def forecast(
    hours: Annotated[
        float, typer.Option("--hours", min=0.25, max=24, metavar="HOURS", help="How far ahead.")
    ] = 1.0,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="GPU", help="Only this one, host/index or index.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    body = open_api(url).get("/v1/gpu/memory-forecast", {"hours": hours, "gpu": gpu})
    Screen(as_json=as_json).show(body, *forecast_blocks(body))


def forecast_blocks(body: Json) -> list[Block]:
    """The memory of each GPU, then the requests of each model."""
    said = f"in {body['hours']:g} h; intervals are to cover {100 * body['level']:.0f} % of what comes"
    details = [
        Note(Cell(f"{gpu['gpu'] or 'GPU'}: {gpu['detail']}", Tone.WARNING))
        for gpu in body["gpus"]
        if gpu["detail"]
    ]
    return [Note(Cell(said)), _memory(body["gpus"]), *details, _requests(body["requests_per_minute"])]


def _memory(gpus: Sequence[Json]) -> Table:
    rows = (
        row(
            shown(gpu["gpu"]),
            gigabytes(gpu["current_usage"]["used_gb"]),
            gigabytes(gpu["current_usage"]["total_gb"]),
            _range(gpu["projected_usage_gb"]),
            _range(gpu["projected_headroom_gb"]),
            gigabytes(gpu["available_for_inference"]["now_gb"]),
            _range(gpu["available_for_inference"]["projected_gb"]),
            gigabytes(gpu["available_for_inference"]["at_peak_gb"]),
            _quality(gpu["forecast"]),
        )
        for gpu in gpus
    )
    names = columns(
        "GPU", "USED NOW>", "TOTAL>?", "USED THEN, GB>", "FREE THEN, GB>", "TO LOAD NOW>?",
        "TO LOAD THEN, GB>?", "AT PEAK>?", "TRACK RECORD~",
    )  # fmt: skip
    return Table(names, tuple(rows), empty="no GPU is known")


def _requests(rates: Mapping[str, Json]) -> Table:
    rows = (
        row(name, number(rate["now"]), _range(rate["projected"]), _quality(rate["forecast"]))
        for name, rate in rates.items()
    )
    names = columns("MODEL", "REQUESTS/MIN NOW>", "THEN>", "TRACK RECORD~")
    return Table(names, tuple(rows), empty="no requests are known of")


def _range(value: Json) -> str:
    return between(value["low"], value["mid"], value["high"])


def _quality(track: Json) -> str:
    """How good such forecasts have been, in words."""
    if track["mase"] is None:
        return str(track["quality"]).replace("_", " ")
    covered = UNKNOWN if track["coverage"] is None else f"{100 * track['coverage']:.0f} %"
    return f"error {track['mase']:.2f} of the last value's, covers {covered}"


COMMAND = Command(
    name="forecast",
    run=forecast,
    summary="Show memory and requests some hours ahead.",
    more="With the interval of each figure and how good such forecasts have been.",
    examples=("forecast", "forecast --hours 6 --json"),
)
