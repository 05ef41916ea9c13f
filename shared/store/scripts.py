"""Load the Lua scripts with the key names, states and limits of this namespace written into them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from shared.config import HistorySettings
from shared.errors import ConfigError
from shared.keys import ROUTER_GROUP, STATIC, Keys
from shared.states import JobEvent, JobState
from shared.store.client import translating
from shared.store.lua_parts import linked, written_in
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


_MOST_MS = 2**53
"""More Lua can't count exactly, nor Redis expire."""
_SMALL_BYTES = 65_536
"""A call with more has a connection to itself: all that came behind it would have to wait for it."""


class Scripts:
    """The scripts of one namespace; ``run`` sends EVALSHA, and the text where the server lacks it.

    Calls of a ``CommandClient`` share connections, so that under load one write carries many of them.
    """

    def __init__(self, redis: Redis, keys: Keys, history: HistorySettings, retention_s: float) -> None:
        if not 1 <= retention_s * 1000 < _MOST_MS:
            raise ConfigError(f"jobs.retention_s = {retention_s}: at least 0.001 and less than {_MOST_MS} ms")
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
    kept = {**history.model_dump(), "index_end": -INDEX_KEPT - 1}
    # What Redis takes as an argument is a string here: a number would be formatted at every call.
    constants: Mapping[str, str | int] = {
        **{f"K.{static}": keys.static(static) for static in STATIC},
        **{f"KEEP.{stream}": str(entries) for stream, entries in kept.items()},
        **{f"STATE.{state.value}": state.value for state in JobState},
        **{f"EVENT.{event.value.removeprefix('job.')}": event.value for event in JobEvent},
        "GROUP": ROUTER_GROUP,
        "RETENTION_MS": str(round(retention_s * 1000)),
        "HISTORY_MS": HISTORY_DAYS * 86_400_000,
    }
    return shebang + written_in(_text(name), constants, lambda pattern: keys.of(pattern, "\0").split("\0"))


@cache
def _text(name: str) -> str:
    parts = ["common", *(part for part, users in _INCLUDED.items() if name in users)]
    return linked([_read(part) for part in parts], _read(name))


@cache
def _read(name: str) -> str:
    return (files("shared.store") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
