"""Load the Lua scripts with the key names, states and limits of this namespace written into their prelude."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from shared.config import HistorySettings
from shared.keys import PATTERNS, STATIC, Keys
from shared.states import JobEvent, JobState
from shared.store.lua_parts import linked, words

INDEX_KEPT = 20_000
"""Newest jobs that GET /v1/jobs can list; twice the default queue bound."""

_ALLOWED_WHEN_FULL = frozenset(
    {"claim", "renew", "finish", "fail", "cancel", "sweep", "promote", "expire", "trim", "hold", "reject"}
    | {"acknowledge", "gpu_sample", "backend_sample", "heartbeat", "retire", "view", "mend"}
    | {"remove_model", "benchmark_turn", "benchmark_end", "revoke_api_key", "touch_api_keys"}
)
"""Scripts that must work at maxmemory: they end work or write bounded state (redis-streams.md, section 2)."""

_INCLUDED = {
    "create": frozenset({"submit", "admit"}),
    "history": frozenset({"gpu_sample", "claim"}),
    "limits": frozenset({"submit"}),
    "models": frozenset({"register", "put_model", "remove_model"}),
    "once": frozenset({"put_model", "remove_model", "announce"}),
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


_MOST_TOGETHER = 64
_SMALL_BYTES = 65_536
"""A call with more goes by itself: many of them would not fit into one client's time-out."""
_WAIT_S = 0.05
_Word = str | bytes | int


def _size(word: _Word) -> int:
    return 8 if isinstance(word, int) else len(word)


@dataclass(eq=False, slots=True)
class _Call:
    name: str
    args: Sequence[_Word]
    reply: asyncio.Future[Any]


class Scripts:
    """The scripts of one namespace; ``run`` sends EVALSHA and falls back to loading on NOSCRIPT.

    A call that comes while another one is under way waits for its reply (but not long) and goes out together
    with all that came meanwhile: under load one write serves many, while a single caller waits for nobody.
    """

    def __init__(self, redis: Redis, keys: Keys, history: HistorySettings, retention_s: float) -> None:
        self._redis = redis
        self._under_way = 0
        self._waiting: list[_Call] = []
        self._relief: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._slot_key = keys.events
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(_source(name, keys, history, retention_s)) for name in NAMES
        }

    async def run(self, name: str, *args: str | bytes | int) -> Any:
        """Run a script; its reply is parsed by the typed wrapper that called."""
        if not self._under_way or sum(map(_size, args)) > _SMALL_BYTES:
            return await self._alone(name, args)
        loop = asyncio.get_running_loop()
        call = _Call(name, args, loop.create_future())
        self._waiting.append(call)
        if self._relief is None:
            # What is under way may hang on a dead connection, or be large: nobody waits long for it.
            self._relief = loop.call_later(_WAIT_S, self._send_waiting)
        return await call.reply

    async def _alone(self, name: str, args: Sequence[_Word]) -> Any:
        self._under_way += 1
        try:
            return await self._single(name, args)
        finally:
            self._came_back()

    async def _single(self, name: str, args: Sequence[_Word]) -> Any:
        return await self._scripts[name](keys=[self._slot_key], args=list(args))

    def _came_back(self) -> None:
        self._under_way -= 1
        if self._waiting:
            self._send_waiting()

    def _send_waiting(self) -> None:
        if self._relief is not None:
            self._relief.cancel()
            self._relief = None
        # Nobody waits for the others any more: they were told that nothing happened.
        calls = [call for call in self._waiting if not call.reply.done()]
        self._waiting = []
        for start in range(0, len(calls), _MOST_TOGETHER):
            task = asyncio.create_task(self._send(calls[start : start + _MOST_TOGETHER]))
            self._under_way += 1
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._came_back()

    async def _send(self, calls: Sequence[_Call]) -> None:
        repeated: list[_Call] = []
        try:
            replies = await self._together(calls)
        except Exception as error:
            replies = [error] * len(calls)
        except asyncio.CancelledError:
            for call in calls:
                call.reply.cancel()
            raise
        for call, reply in zip(calls, replies, strict=True):
            if call.reply.done():
                continue  # whoever asked waits no more
            if isinstance(reply, NoScriptError):
                repeated.append(call)
            elif isinstance(reply, Exception):
                call.reply.set_exception(reply)
            else:
                call.reply.set_result(reply)
        for call in repeated:
            await self._repeat(call)

    async def _together(self, calls: Sequence[_Call]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for call in calls:
            pipe.evalsha(self._scripts[call.name].sha, 1, self._slot_key, *call.args)
        return await pipe.execute(raise_on_error=False)

    async def _repeat(self, call: _Call) -> None:
        """Once more by itself, which loads the script."""
        try:
            reply = await self._single(call.name, call.args)
        except Exception as error:
            if not call.reply.done():
                call.reply.set_exception(error)
        else:
            if not call.reply.done():
                call.reply.set_result(reply)


def encoded(order: Mapping[str, Any]) -> bytes:
    """A script's argument as JSON.

    Half a surrogate pair, which neither UTF-8 nor Lua's decoder takes, becomes a question mark: a backend may
    cut its answer in the middle of an emoji, and that must not keep an attempt from being recorded.
    """
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
