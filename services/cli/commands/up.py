"""``up``: everything on this machine, as ``make up`` starts it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from services.cli.command import Command
from services.cli.settings import environ


def up(
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="The settings file, else ORCH_CONFIG, else none."),
    ] = None,
) -> None:
    sys.stdout.flush()
    # In this process's place, so that its signals and its exit code are those of the supervisor.
    os.execve(sys.executable, [sys.executable, "-m", "services.up"], environ(config))


COMMAND = Command(
    name="up",
    run=up,
    summary="Start Redis and all services here, until Ctrl-C.",
    examples=("up", "up --config my.yaml"),
)
