"""``models``: the registry, and how routing would rank it."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.blocks import Block, Cell, Note, Table, Tone, columns, row
from services.cli.client import Json, open_api, path_of
from services.cli.command import Command, Group
from services.cli.options import AgentType, AModel, AsJson, ModelName, Url
from services.cli.screen import Screen
from services.cli.status_view import model_table
from services.cli.wording import number, shown, span, toned
from shared.states import BackendType


def models(ctx: typer.Context, url: Url = None, as_json: AsJson = False) -> None:
    if ctx.invoked_subcommand is None:
        body = open_api(url).get("/v1/gpu/models")
        Screen(as_json=as_json).show(body, model_table({model["name"]: model for model in body["models"]}))


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is to be called.", show_default=False)],
    backend: Annotated[
        BackendType | None, typer.Option("--backend", help="Its kind of server; else asked of it.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="Its port, on the backends' host.")
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="Its address, in place of a port.")
    ] = None,
    vram_gb: Annotated[float | None, typer.Option("--vram-gb", metavar="GB", help="Memory it takes.")] = None,
    slots: Annotated[int | None, typer.Option("--slots", metavar="N", help="Requests at once.")] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option("--context-tokens", metavar="N", help="Its context; else asked of its server."),
    ] = None,
    agent_type: Annotated[
        list[str] | None,
        typer.Option("--agent-type", "-a", metavar="TYPE", help="May be given several times."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    body: Json = {
        "name": name,
        "backend": None if backend is None else backend.value,
        "port": port,
        "url": server,
        "vram_gb": vram_gb,
        "slots": slots,
        "context_tokens": context_tokens,
        "agent_types": agent_type or None,
    }
    given = {field: value for field, value in body.items() if value is not None}
    answer = open_api(url).call("POST", "/v1/gpu/models", body=given).body
    Screen(as_json=as_json).show(
        answer, Note(Cell(f"model {name} is registered at {answer['url']}", Tone.GOOD))
    )


def remove(name: ModelName, url: Url = None, as_json: AsJson = False) -> None:
    open_api(url).call("DELETE", path_of("v1", "gpu", "models", name))
    body = {"model": name, "removed": True}
    Screen(as_json=as_json).show(body, Note(Cell(f"model {name} is removed; its server is left alone")))


def rank(
    agent_type: AgentType = None,
    model: AModel = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", help="Output asked for.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    query = {"agent_type": agent_type, "model": model, "max_tokens": max_tokens}
    body = open_api(url).get("/v1/gpu/models-optimal", query)
    Screen(as_json=as_json).show(body, *ranking_blocks(body))


def ranking_blocks(ranking: Json) -> list[Block]:
    """The ranking, and what would be done with the request."""
    rows = (
        row(
            shown(model["rank"]),
            Cell(model["model"], Tone.GOOD if model["would_be_chosen"] else Tone.PLAIN),
            number(model["score"], 2),
            span(model["estimated_duration_ms"]),
            toned(model["residence"]),
            shown(model["gpu"]),
            model["reason"],
        )
        for model in ranking["models"]
    )
    names = columns("RANK>", "MODEL", "SCORE>", "ESTIMATE>", "STATE?", "GPU?", "REASON~")
    decision = ranking["decision"]
    said = Note(Cell(f"{decision['action']}: {decision['reason']}", toned(decision["action"]).tone))
    notes = [Note(Cell(note, Tone.WARNING)) for note in ranking["notes"]]
    return [said, *notes, Table(names, tuple(rows), empty="no model is registered")]


GROUP = Group(
    name="models",
    summary="List the registered models; add, remove or rank them.",
    alone=Command(
        name="models",
        run=models,
        summary="List the registered models; add, remove or rank them.",
        examples=("models", "models --json", "models rank --agent-type Chat"),
    ),
    commands=(
        Command(
            name="add",
            run=add,
            summary="Register a model.",
            more="Its server runs already. Models of the settings file are changed there.",
            examples=("models add qwen --port 8082 --vram-gb 4.8 --agent-type Code",),
        ),
        Command(
            name="remove",
            run=remove,
            summary="Take a model out of the registry.",
            more="Its server is left alone, its jobs in flight end as they will.",
            examples=("models remove qwen",),
        ),
        Command(
            name="rank",
            run=rank,
            summary="Show the models in the order of routing.",
            more="For a request with these fields, on the state as it is now.",
            examples=("models rank --agent-type Chat --max-tokens 256",),
        ),
    ),
)
