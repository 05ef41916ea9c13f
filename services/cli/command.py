"""A command as data: its function, what its help says, and how its errors become an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

from services.cli.failures import exit_code
from shared.errors import OrchestratorError
from shared.masking import masked

PROGRAM = "gpu-orchestrator"


@dataclass(frozen=True, slots=True)
class Command:
    """One command; ``summary`` stands in lists too, ``examples`` are the words after the program's name."""

    name: str
    run: Callable[..., None]
    summary: str
    examples: tuple[str, ...]
    more: str = ""
    options_metavar: str = "[OPTIONS]"
    context_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        """What ``--help`` says; it must not hold square brackets, which a terminal's help takes as markup."""
        examples = paragraph("Examples:", (f"{PROGRAM} {words}" for words in self.examples))
        return "\n\n".join(text for text in (self.summary, self.more, examples) if text)

    def add_to(self, app: typer.Typer) -> None:
        app.command(
            self.name,
            help=self.help,
            options_metavar=self.options_metavar,
            context_settings=dict(self.context_settings),
        )(guarded(self.run))


@dataclass(frozen=True, slots=True)
class Group:
    """Commands below one word; ``alone`` runs before any of them and sees in its context which one it is."""

    name: str
    summary: str
    commands: tuple[Command, ...]
    alone: Command | None = None

    def add_to(self, app: typer.Typer, *, pretty: bool) -> None:
        below = typer.Typer(
            rich_markup_mode="rich" if pretty else None,
            no_args_is_help=self.alone is None,
            invoke_without_command=self.alone is not None,
            callback=None if self.alone is None else guarded(self.alone.run),
            help=self.summary if self.alone is None else self.alone.help,
        )
        for command in self.commands:
            command.add_to(below)
        app.add_typer(below, name=self.name)


def paragraph(title: str, lines: Any) -> str:
    """A title and lines under it that keep their breaks."""
    # Click joins the lines of a paragraph unless it begins with this character, which rich leaves out.
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


def guarded(run: Callable[..., None]) -> Callable[..., None]:
    """``run`` with its errors told in one line on stderr, and the exit code that they stand for."""

    @functools.wraps(run)
    def command(*args: Any, **options: Any) -> None:
        try:
            run(*args, **options)
            sys.stdout.flush()
        except OrchestratorError as error:
            complain(str(error))
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:
            # The reader of a pipe (head, grep -m) had enough; without this Python complains at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return command


def complain(message: str) -> None:
    """Say on stderr, in one line, what is wrong."""
    sys.stdout.flush()
    sys.stderr.write(f"{PROGRAM}: {masked(' '.join(message.split()))}\n")
