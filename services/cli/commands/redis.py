"""``redis``: one Redis command, for machines without redis-cli."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from services.cli.command import Command
from services.cli.failures import Refused, WrongUsage
from services.cli.settings import load
from shared.errors import StoreUnavailable


def redis(
    ctx: typer.Context,
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", metavar="PORT", min=1, max=65535, help="A port on 127.0.0.1."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", "-u", metavar="URL", help="redis://, rediss:// or unix://, else the settings'."
        ),
    ] = None,
) -> None:
    words = ctx.args
    if not words:
        raise WrongUsage("redis: say a command, such as: XLEN orch:decisions")
    if port is not None and url is not None:
        raise WrongUsage("redis: give --port or --url, not both")
    try:
        _ask(f"redis://127.0.0.1:{port}/0" if port is not None else url or load().redis.effective_url, words)
    except StoreUnavailable as error:
        # As redis-cli ends, which scripts may have been written for.
        raise Refused(str(error)) from None


def _ask(url: str, words: list[str]) -> None:
    from shared.store import raw

    reply: raw.Reply = None
    for reply in raw.replies(url, words):
        sys.stdout.buffer.write(raw.shown(reply, words, sys.stdout.isatty()) + b"\n")
        sys.stdout.buffer.flush()
    if isinstance(reply, raw.Failure):
        raise typer.Exit(1)


COMMAND = Command(
    name="redis",
    run=redis,
    summary="Send one Redis command, as redis-cli does.",
    more="The reply looks as there; the exit code is 1 where Redis can't be reached or says no.",
    examples=("redis XLEN orch:decisions", "redis -p 6390 XREVRANGE orch:decisions + - COUNT 1"),
    options_metavar="[OPTIONS] COMMAND [ARGS]...",
    # From the first word on everything belongs to Redis, also what looks like an option.
    context_settings={"allow_extra_args": True, "allow_interspersed_args": False},
)
