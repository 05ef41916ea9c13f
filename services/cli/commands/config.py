"""``config``: which settings there are, whether they are right, what they come to; keys are never shown."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from services.cli.blocks import Cell, Note, Tone
from services.cli.command import Command, Group, complain
from services.cli.failures import ExitCode
from services.cli.masking import masked_tree
from services.cli.options import AsJson
from services.cli.screen import Screen
from services.cli.settings import environ, load
from shared.errors import ConfigError
from shared.masking import masked

File = Annotated[
    str | None, typer.Argument(metavar="FILE", help="The settings file, else ORCH_CONFIG, else none.")
]


def check(file: File = None, as_json: AsJson = False) -> None:
    origin = _origin(file)
    screen = Screen(as_json=as_json)
    try:
        settings = load(file)
    except ConfigError as error:
        wrong = problems(str(error), origin)
        if as_json:
            screen.document({"file": origin, "valid": False, "problems": wrong})
        else:
            for problem in wrong:
                complain(f"{origin}: {problem}")
        raise typer.Exit(ExitCode.USAGE) from None
    names = ", ".join(model.name for model in settings.registrations)
    simulated = "" if settings.models else " (simulated: no model is configured)"
    said = f"{origin}: right; models: {names}{simulated}"
    screen.show({"file": origin, "valid": True, "problems": []}, Note(Cell(said, Tone.GOOD)))


def show(file: File = None, as_json: AsJson = False) -> None:
    tree = effective(file)
    if as_json:
        Screen(as_json=True).document(tree)
        return
    import yaml

    sys.stdout.write(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def reference(
    short: Annotated[
        bool, typer.Option("--short", help="Only the table of those that people change most.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON schema of the settings file, for editors.")
    ] = False,
) -> None:
    from services.cli import reference

    if as_json:
        Screen(as_json=True).document(reference.json_schema())
    else:
        sys.stdout.write(reference.extract() if short else reference.page())


def effective(file: str | None) -> Any:
    """The settings in effect as plain data, without secrets; raises ``ConfigError``."""
    settings = load(file)
    explicit = settings.model_copy(update={"models": settings.registrations})
    return masked_tree(explicit.model_dump(mode="json", exclude_none=True))


def problems(message: str, origin: str) -> list[str]:
    """Every wrong key of a ``ConfigError`` on its own, without its file and without secrets."""
    parts = message.removeprefix(f"{origin}: ").split(f"; {origin}: ")
    return [masked(" ".join(part.split())) for part in parts]


def _origin(file: str | None) -> str:
    return environ(file).get("ORCH_CONFIG") or "environment"


GROUP = Group(
    name="config",
    summary="Check the settings, show what they come to, or list all there are.",
    commands=(
        Command(
            name="check",
            run=check,
            summary="Say whether the settings are right.",
            more="Every wrong key is named with what is allowed; the exit code is 2 then.",
            examples=("config check my.yaml", "config check --json"),
        ),
        Command(
            name="show",
            run=show,
            summary="Print the settings in effect as YAML.",
            more="File, environment and defaults together. Passwords and keys are hidden.",
            examples=("config show my.yaml", "config show --json"),
        ),
        Command(
            name="reference",
            run=reference,
            summary="Print the documentation of every setting, in Markdown.",
            more="With its variable, default, range, unit and meaning; docs/configuration.md is this.",
            examples=("config reference", "config reference --short", "config reference --json"),
        ),
    ),
)
