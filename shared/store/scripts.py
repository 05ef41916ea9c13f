"""Load the Lua scripts with the key names, states and limits of this namespace written into their prelude."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from shared.config import HistorySettings
from shared.keys import PATTERNS, ROUTER_GROUP, STATIC, Keys
from shared.states import JobEvent, JobState
from shared.store.client import translating
from shared.store.lua_parts import linked, words
from shared.store.wire import CommandClient, Word, packed

INDEX_KEPT = 20_000
"""Newest jobs that GET /v1/jobs can list; twice the default queue bound."""

_ALLOWED_WHEN_FULL = frozenset(
    {"claim", "renew", "finish", "fail", "cancel", "sweep", "promote", "expire", "trim", "hold", "reject"}
    | {"take", "acknowledge", "gpu_sample", "backend_sample", "heartbeat", "retire", "view", "mend"}
    | {"remove_model", "benchmark_turn", "benchmark_end", "revoke_api_key", "touch_api_keys"}
)
"""Scripts that must work at maxmemory: they end work or write bounded state (redis-streams.md, section 2)."""

_INCLUDED = {
    "create": frozenset({"submit", "admit"}),
    "history": frozenset({"gpu_sample", "claim", "submit"}),
    "limits": frozenset({"submit"}),
    "models": frozenset({"register", "put_model", "remove_model", "fail"}),
    "once": frozenset({"put_model", "remove_model", "announce"}),
    "start": frozenset({"claim", "submit"}),
}
"""Parts that only these scripts need, behind common.lua."""

HISTORY_DAYS = 8
"""How long the buckets of the forecast are kept: a profile of seven days, and one to judge it by."""

NAMES = tuple(
    sorted(
        entry.name.removesuffix(".lua")
        for entry in (files("shared.store") / "lua").iterdir()
        if entry.name.endswith(".lua") and entry.name.removesuffix(".lua") not in {"common", *_INCLUDED}
    )
)


_SMALL_BYTES = 65_536
"""A call with more has a connection to itself: all that came behind it would have to wait for it."""


class Scripts:
    """The scripts of one namespace; ``run`` sends EVALSHA, and the text where the server lacks it.

    Calls of a ``CommandClient`` share connections, so that under load one write carries many of them.
    """

    def __init__(self, redis: Redis, keys: Keys, history: HistorySettings, retention_s: float) -> None:
        self._redis = redis
        self._client = redis if isinstance(redis, CommandClient) else None
        self._slot_key = keys.events
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(_source(name, keys, history, retention_s)) for name in NAMES
        }

    async def run(self, name: str, *args: Word) -> Any:
        """Run a script; its reply is parsed by the typed wrapper that called."""
        client, script = self._client, self._scripts[name]
        rest = (1, self._slot_key, *args)
        if client is None or len(command := packed("EVALSHA", script.sha, *rest)) > _SMALL_BYTES:
            async with translating(self._redis):
                return await script(keys=[self._slot_key], args=list(args))
        try:
            return await client.send(command)
        except NoScriptError:
            # Over the same connection: after a failover another may lead elsewhere. The server keeps it.
            return await client.send(packed("EVAL", str(script.script), *rest))


def encoded(order: Mapping[str, Any]) -> bytes:
    """A script's argument as JSON.

    Half a surrogate pair, which neither UTF-8 nor Lua's decoder takes, becomes a question mark: a backend may
    cut its answer in the middle of an emoji, and that must not keep an attempt from being recorded.
    """
    try:
        return to_json(order)
    except PydanticSerializationError:
        return json.dumps(order, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _source(name: str, keys: Keys, history: HistorySettings, retention_s: float) -> str:
    shebang = "#!lua flags=allow-oom\n" if name in _ALLOWED_WHEN_FULL else "#!lua\n"
    return shebang + _prelude(_words(name), keys, history, retention_s) + _text(name)


@cache
def _text(name: str) -> str:
    parts = ["common", *(part for part, users in _INCLUDED.items() if name in users)]
    return linked([_read(part) for part in parts], _read(name))


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(words(_text(name)))


@cache
def _read(name: str) -> str:
    return (files("shared.store") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _prelude(used: Set[str], keys: Keys, history: HistorySettings, retention_s: float) -> str:
    """The tables of key names, states and limits, as far as a script uses them."""
    patterns = {name: keys.of(name, "\0").split("\0") for name in PATTERNS if name in used}
    kept = {**history.model_dump(), "index": INDEX_KEPT}
    values = {
        "K": _table({name: keys.static(name) for name in STATIC if name in used}),
        "P": _table(patterns),
        "STATE": _table({state.value: state.value for state in JobState}),
        "EVENT": _table({event.value.removeprefix("job."): event.value for event in JobEvent}),
        "KEEP": _table(kept),
        "GROUP": _literal(ROUTER_GROUP),
        "RETENTION_MS": str(round(retention_s * 1000)),
        "HISTORY_MS": str(HISTORY_DAYS * 86_400_000),
    }
    return "".join(f"local {name} = {value}\n" for name, value in values.items() if name in used)


def _table(values: Mapping[str, str | int | Sequence[str]]) -> str:
    return "{" + ", ".join(f"{name} = {_literal(value)}" for name, value in values.items()) + "}"


def _literal(value: str | int | Sequence[str]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "{" + ", ".join(_literal(item) for item in value) + "}"
