"""``keys``: make, list and revoke API keys, straight in Redis: whoever reaches that is an admin already."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from services.cli.blocks import Cell, Note, Table, Tone, columns, fields, row
from services.cli.client import Json
from services.cli.command import Command, Group
from services.cli.failures import Refused, Unreachable
from services.cli.options import AsJson
from services.cli.screen import Screen
from services.cli.settings import load
from services.cli.wording import UNKNOWN, age, shown
from shared.errors import ConfigError, StoreUnavailable
from shared.masking import masked

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.store.api_keys import ApiKey, ApiKeyStore, KeyUse

T = TypeVar("T")
_ROLES = ("user", "admin")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.", show_default=False)]


def _role(value: str) -> str:
    if value not in _ROLES:
        raise typer.BadParameter(f"must be {' or '.join(_ROLES)}")
    return value


def create(
    name: Name,
    role: Annotated[
        str,
        typer.Option("--role", metavar="ROLE", help="user, or admin.", callback=_role),
    ] = "user",
    in_flight: Annotated[
        int | None, typer.Option("--in-flight", metavar="N", help="Most jobs that have not ended.")
    ] = None,
    queued: Annotated[int | None, typer.Option("--queued", metavar="N", help="Most jobs that wait.")] = None,
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", metavar="N", help="Most jobs accepted in 60 seconds.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="The only models that it may name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    from shared.store.api_keys import CreateOutcome, new_key

    named = None if models is None else tuple(one.strip() for one in models.split(","))
    text, key = new_key(
        name, role=role, in_flight=in_flight, queued=queued, per_minute=per_minute, models=named
    )
    if _in_redis(lambda store: store.create(key)) is CreateOutcome.EXISTS:
        raise Refused(f"keys: {name} has a key already: revoke that one first, or choose another name")
    screen = Screen(as_json=as_json)
    body = {**_described(key), "key": text}
    if not (as_json or screen.terminal):
        # KEY=$(gpu-orchestrator keys create NAME)
        sys.stdout.write(f"{text}\n")
        return
    said = f"key of {name}, role {role}; it is shown this once"
    screen.show(body, Note(Cell(said, Tone.GOOD)), fields(("key", text)))


def show(as_json: AsJson = False) -> None:
    found = _in_redis(lambda store: store.listed())
    now_ms = time.time() * 1000
    rows = tuple(
        row(
            one.key.name,
            one.key.role,
            Cell("good", Tone.GOOD) if one.key.revoked_ms is None else Cell("revoked", Tone.FAINT),
            shown(one.key.in_flight),
            shown(one.key.queued),
            shown(one.key.per_minute),
            ", ".join(one.key.models or ()) or "all",
            _ago(one.key.created_ms, now_ms),
            _ago(one.used_ms, now_ms),
        )
        for one in found
    )
    names = columns(
        "NAME", "ROLE", "STATE", "IN FLIGHT>", "QUEUED>", "PER MINUTE>", "MODELS~", "MADE>?", "USED>?"
    )
    empty = "no key was ever made: on loopback none is asked for"
    Screen(as_json=as_json).show({"keys": [_listed(one) for one in found]}, Table(names, rows, empty=empty))


def revoke(name: Name, as_json: AsJson = False) -> None:
    from shared.store.api_keys import RevokeOutcome

    if _in_redis(lambda store: store.revoke(name)) is RevokeOutcome.UNKNOWN:
        raise Refused(f"keys: there is no key of {name!r}: `keys list` shows them")
    body = {"name": name, "revoked": True}
    Screen(as_json=as_json).show(body, Note(Cell(f"the key of {name} is revoked", Tone.GOOD)))


def _in_redis(call: Callable[[ApiKeyStore], Awaitable[T]]) -> T:
    import asyncio

    settings = load()
    try:
        return asyncio.run(_asked(settings, call))
    except StoreUnavailable as error:
        raise Unreachable(
            f"no Redis answers at {masked(settings.redis.effective_url)} ({error}): start it with "
            "`gpu-orchestrator up`, or name another with ORCH_CONFIG or ORCH_REDIS__URL"
        ) from None


async def _asked(settings: Settings, call: Callable[[ApiKeyStore], Awaitable[T]]) -> T:
    from shared.keys import Keys
    from shared.store.api_keys import ApiKeyStore
    from shared.store.client import connect_commands

    try:
        redis = connect_commands(settings.redis.effective_url, "cli", fail_fast=True, connections=1)
    except ValueError as error:
        raise ConfigError(f"redis.url = {masked(settings.redis.effective_url)!r}: {error}") from None
    try:
        keys = Keys(settings.redis.namespace)
        return await call(ApiKeyStore(redis, keys, settings.history, settings.jobs.retention_s))
    finally:
        await redis.aclose()


def _described(key: ApiKey) -> Json:
    """What may be shown of a key: neither it nor its hash."""
    body: dict[str, Any] = key.model_dump(mode="json", exclude={"hash", "created_ms", "revoked_ms"})
    return body


def _listed(use: KeyUse) -> Json:
    times = {"created_ms": use.key.created_ms, "revoked_ms": use.key.revoked_ms, "used_ms": use.used_ms}
    return {**_described(use.key), **times}


def _ago(at_ms: int | None, now_ms: float) -> str:
    return UNKNOWN if at_ms is None else f"{age(at_ms, now_ms)} ago"


GROUP = Group(
    name="keys",
    summary="Make, list and revoke API keys.",
    commands=(
        Command(
            name="create",
            run=create,
            summary="Make an API key and show it, once.",
            more="From the first key on nothing is answered without one. Only its hash is kept, in Redis.",
            examples=(
                "keys create alice --in-flight 4 --per-minute 60 --models qwen,bi-medix2",
                "keys create ops --role admin --json",
            ),
        ),
        Command(
            name="list",
            run=show,
            summary="List all keys with their limits and their last use.",
            examples=("keys list", "keys list --json"),
        ),
        Command(
            name="revoke",
            run=revoke,
            summary="Make a key worthless, within a second.",
            more="Its jobs go on. When the last one goes, nothing is answered until there is another.",
            examples=("keys revoke alice",),
        ),
    ),
)
