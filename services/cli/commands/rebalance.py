"""``rebalance``: what would be worth loading, unloading or moving."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.blocks import Block, Cell, Note, Table, Tone, columns, row
from services.cli.client import Json, open_api
from services.cli.command import Command
from services.cli.options import AsJson, Url
from services.cli.screen import Screen
from services.cli.wording import shown


def rebalance(
    execute: Annotated[bool, typer.Option("--execute", help="Carry it out; needs a launcher.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    api = open_api(url)
    if execute:
        body = api.call("POST", "/v1/gpu/rebalance", {"execute": True}).body
    else:
        body = api.get("/v1/gpu/rebalance")
    Screen(as_json=as_json).show(body, *rebalance_blocks(body))


def rebalance_blocks(body: Json) -> list[Block]:
    """The actions, best first, and the readings that were missing."""
    rows = (
        row(
            Cell(action["action"], Tone.FAINT if action["action"] == "nothing" else Tone.WARNING),
            shown(action["model"]),
            " to ".join(place for place in (action["gpu"], action["to_gpu"]) if place) or shown(None),
            ", ".join(action["unloads"]) or shown(None),
            action["reason"],
            action["changes"],
        )
        for action in body["actions"]
    )
    names = columns("ACTION", "MODEL", "GPU", "UNLOADS?", "REASON~", "WHAT IT BRINGS~")
    notes = [Note(Cell(note, Tone.WARNING)) for note in body["notes"]]
    return [*notes, Table(names, tuple(rows), empty="nothing is worth doing")]


COMMAND = Command(
    name="rebalance",
    run=rebalance,
    summary="Show what is worth loading or unloading.",
    more="And why, and what it would bring; changes nothing without --execute.",
    examples=("rebalance", "rebalance --json"),
)
