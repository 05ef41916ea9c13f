"""``status``: GPUs, models, queue and services, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import typer

from services.cli.client import Api, Json, open_api
from services.cli.command import Command
from services.cli.options import AsJson, Url
from services.cli.screen import Screen, watched
from services.cli.status_view import status_blocks


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="Between two looks.")
    ] = 2.0,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    api, screen = open_api(url), Screen(as_json=as_json)
    if not watch:
        body = _status(api)
        screen.show(body, *status_blocks(body))
    elif screen.terminal:
        watched(status_blocks(body) for body in _again(api, interval))
    else:
        for body in _again(api, interval):
            screen.again(body, *status_blocks(body))


def _status(api: Api) -> Json:
    return api.get("/v1/gpu/status")


def _again(api: Api, interval_s: float) -> Iterator[Json]:
    while True:
        yield _status(api)
        time.sleep(interval_s)


COMMAND = Command(
    name="status",
    run=status,
    summary="Show GPUs, models, queue and services.",
    more="Memory, heat and load of the GPUs, the models on them, what waits and why, who is alive.",
    examples=("status", "status --watch --interval 1", "status --json"),
)
