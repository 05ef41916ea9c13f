"""The whole command line: which commands there are, and what holds for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from services.cli.command import PROGRAM, Command, Group, paragraph
from services.cli.commands import (
    benchmark,
    cancel,
    config,
    decisions,
    forecast,
    job,
    jobs,
    keys,
    models,
    rebalance,
    redis,
    status,
    submit,
    up,
)
from services.cli.failures import MEANINGS

COMMANDS: tuple[Command | Group, ...] = (
    up.COMMAND,
    submit.COMMAND,
    jobs.COMMAND,
    job.COMMAND,
    cancel.COMMAND,
    status.COMMAND,
    decisions.COMMAND,
    models.GROUP,
    benchmark.COMMAND,
    forecast.COMMAND,
    rebalance.COMMAND,
    redis.COMMAND,
    config.GROUP,
    keys.GROUP,
)
"""In the order in which ``--help`` lists them; a new one is a module beside these and a line here."""

_ABOUT = "\n\n".join(
    (
        "GPU-aware load balancing for local LLMs.",
        "Tables on a terminal, plain aligned text in a pipe, JSON with --json.",
        paragraph(
            "Examples:",
            (f"{PROGRAM} {words}" for words in ("up", "submit 'Say hello.' --wait", "status --json")),
        ),
        paragraph("Exit codes:", (f"{code:<4}{meaning}" for code, meaning in MEANINGS.items())),
        paragraph(
            "Environment:",
            (
                "ORCH_API_URL  where the orchestrator is (else the settings' api.host and api.port)",
                "ORCH_API_KEY  the key to show it, where it asks for one",
                "ORCH_CONFIG   the settings file; ORCH_SECTION__KEY sets one value",
                "NO_COLOR      no colour on a terminal",
            ),
        ),
    )
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code (``ExitCode``)."""
    # What a model wrote must not fail on a terminal that lacks its characters.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    pretty = sys.stdout.isatty() and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    build(pretty=pretty)(args=argv, prog_name=PROGRAM)


def build(*, pretty: bool) -> typer.Typer:
    """The command line; ``pretty``: its help and its complaints have boxes and colour."""
    app = typer.Typer(
        help=_ABOUT,
        callback=_about,
        no_args_is_help=True,
        rich_markup_mode="rich" if pretty else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in COMMANDS:
        if isinstance(command, Group):
            command.add_to(app, pretty=pretty)
        else:
            command.add_to(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"{PROGRAM} {version(PROGRAM)}\n")
        raise typer.Exit


def _about(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    """Options of the whole command line."""
