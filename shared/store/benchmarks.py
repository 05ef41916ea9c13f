"""Benchmarks in Redis: one at a time for a registration, kept alive by a heartbeat, read by anybody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from shared.config import HistorySettings
from shared.keys import Keys
from shared.states import JobState
from shared.store.client import translating
from shared.store.scripts import Scripts, encoded

HEARTBEAT_TTL_S = 10.0
"""A benchmark whose process was silent for this long is over, and its models free for the next."""
_LOCK_MS = round(HEARTBEAT_TTL_S * 1000)


class TurnOutcome(StrEnum):
    RUNNING = "RUNNING"
    ENDED = "ENDED"  # it is recorded as ended, or not known any more
    LOST = "LOST"  # another one measures one of its registrations


@dataclass(frozen=True, slots=True)
class Measurable:
    """What is measured under the public name ``model``: every registration that answers to it.

    ``names`` are all the names that these answer to, ``agent_types`` those whose jobs go to them (none =
    any): what waits for one of them is live traffic of what is measured.
    """

    model: str
    registrations: tuple[str, ...]
    names: tuple[str, ...]
    agent_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """``live``: jobs of others that wait for what is measured."""

    outcome: TurnOutcome
    live: int


@dataclass(frozen=True, slots=True)
class BenchmarkRecord:
    """One benchmark as stored; ``interrupted``: it is not recorded as ended and nobody runs it any more."""

    benchmark_id: str
    fields: Mapping[str, str]
    interrupted: bool


class BenchmarkStore:
    """Raises ``StoreUnavailable`` when Redis can't serve now."""

    def __init__(self, redis: Redis, keys: Keys, history: HistorySettings, retention_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = Scripts(redis, keys, history, retention_s)

    async def begin(self, benchmark_id: str, measured: Measurable, fields: Mapping[str, str]) -> str:
        """Begin; the id of the one that runs, which is another's where one has a registration already."""
        order = {
            "id": benchmark_id,
            "model": measured.model,
            "registrations": measured.registrations,
            "lock_ms": _LOCK_MS,
            "fields": dict(fields),
        }
        _, running = await self._run("benchmark_begin", order)
        return str(running)

    async def turn(
        self, benchmark_id: str, measured: Measurable, *, caller: str, fields: Mapping[str, str]
    ) -> Turn:
        """Say that it goes on; ``caller`` is that of its own jobs, which are no live traffic."""
        order: dict[str, Any] = {
            "id": benchmark_id,
            "model": measured.model,
            "registrations": measured.registrations,
            "names": dict.fromkeys(measured.names, True),
            "lock_ms": _LOCK_MS,
            "caller": caller,
            "fields": dict(fields),
        }
        if measured.agent_types:
            order["agents"] = dict.fromkeys(measured.agent_types, True)
        outcome, live = await self._run("benchmark_turn", order)
        return Turn(TurnOutcome(outcome), int(live))

    async def end(
        self,
        benchmark_id: str,
        measured: Measurable,
        state: JobState,
        fields: Mapping[str, str],
        *,
        registration: str | None,
        learned: Mapping[str, str],
    ) -> None:
        """Record its end once, and with ``registration`` what it measured in that model's hash."""
        order: dict[str, Any] = {
            "id": benchmark_id,
            "registrations": measured.registrations,
            "state": state.value,
            "fields": dict(fields),
            "learned": dict(learned),
        }
        if registration is not None:
            order["registration"] = registration
        await self._run("benchmark_end", order)

    async def get(self, benchmark_id: str) -> BenchmarkRecord | None:
        """One benchmark as it stands, None if unknown (or kept no longer)."""
        if ":" in benchmark_id:
            return None
        async with translating(self._redis):
            fields: Any = await self._redis.hgetall(self._keys.of("benchmark", benchmark_id))
            if "state" not in fields:
                return None
            registrations = json.loads(fields.get("registrations", "[]"))
            locks = [self._keys.of("benchmarking", name) for name in registrations]
            held = bool(locks) and benchmark_id in await self._redis.mget(locks)
            if fields["state"] == JobState.RUNNING and not held:
                # It may have ended between the two looks.
                fields = await self._redis.hgetall(self._keys.of("benchmark", benchmark_id))
        running = fields.get("state") == JobState.RUNNING
        return BenchmarkRecord(benchmark_id, fields, running and not held)

    async def _run(self, name: str, order: Mapping[str, Any]) -> Any:
        async with translating(self._redis):
            return await self._scripts.run(name, encoded(order))
