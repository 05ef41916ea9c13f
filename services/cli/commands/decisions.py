"""``decisions``: what the routers decided and why, read from Redis, since no call of the API lists it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.blocks import Cell, Table, Tone, columns, row
from services.cli.client import Json
from services.cli.command import Command
from services.cli.failures import Unreachable
from services.cli.options import AsJson
from services.cli.screen import Screen
from services.cli.settings import load
from services.cli.wording import clock, shown, toned
from shared.errors import StoreUnavailable
from shared.masking import masked

if TYPE_CHECKING:
    from shared.store.records import StreamEntry

_NESTED = ("scores", "left_out", "inputs")


def decisions(
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, max=10_000, metavar="N", help="The last so many.")
    ] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Then those that come, until Ctrl-C.")
    ] = False,
    redis: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="Another Redis than the settings' one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    # Redis and asyncio take longer to import than most commands take to run.
    from services.cli import decision_stream

    settings = load()
    url = redis or settings.redis.effective_url
    screen = Screen(as_json=as_json)
    try:
        if follow:
            decision_stream.follow(
                url, settings, count, lambda entry: screen.line(decision(entry), *decision_cells(entry))
            )
        else:
            entries = decision_stream.last(url, settings, count)
            screen.show({"decisions": [decision(entry) for entry in entries]}, decision_table(entries))
    except StoreUnavailable as error:
        raise Unreachable(
            f"no Redis answers at {masked(url)} ({error}): start it with `gpu-orchestrator up`, "
            "or name another with --redis or ORCH_REDIS__URL"
        ) from None


def decision(entry: StreamEntry) -> Json:
    """An entry as JSON, with what it holds as JSON read."""
    body: Json = {"id": entry.id, **entry.fields}
    return {name: _parsed(value) if name in _NESTED else value for name, value in body.items()}


def decision_table(entries: list[StreamEntry]) -> Table:
    names = columns("TIME", "ACTION", "JOB?", "MODEL", "REASON~")
    return Table(names, tuple(decision_cells(entry) for entry in entries), empty="no decisions yet")


def decision_cells(entry: StreamEntry) -> tuple[Cell, ...]:
    fields = entry.fields
    return row(
        Cell(clock(int(entry.id.partition("-")[0])), Tone.FAINT),
        toned(fields.get("action")),
        shown(fields.get("job_id")),
        shown(fields.get("model")),
        fields.get("reason", ""),
    )


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


COMMAND = Command(
    name="decisions",
    run=decisions,
    summary="Show the last decisions and their reasons.",
    more="They are read from Redis, where the routers leave them.",
    examples=("decisions -n 3", "decisions --follow", "decisions --follow --json"),
)
