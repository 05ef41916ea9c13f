"""The one-minute buckets of the last eight days, as written by scripts: memory by GPU, requests by model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.keys import Keys
from shared.store.client import translating
from shared.store.scripts import HISTORY_DAYS

_MINUTES_PER_DAY = 1440
_FIGURES = 7


@dataclass(frozen=True, slots=True)
class MemoryBucket:
    """One minute of one GPU: mean and highest reading in MB of 2^20 bytes.

    ``managed`` is what the models resident there are registered with, ``foreign`` what is used besides.
    """

    samples: int
    used_mean_mb: float
    used_max_mb: float
    foreign_mean_mb: float
    foreign_max_mb: float
    managed_mean_mb: float
    managed_max_mb: float


@dataclass(frozen=True, slots=True)
class History:
    """Buckets as stored, by day since 1970 and minute of the day; they are many, so parse them off the loop.

    ``now_ms`` is Redis time when they were read.
    """

    now_ms: int
    gpus: Mapping[str, Mapping[int, Mapping[str, str]]]
    models: Mapping[str, Mapping[int, Mapping[str, str]]]

    @property
    def minute(self) -> int:
        """The minute since 1970 that was running."""
        return self.now_ms // 60_000

    def memory(self, gpu: str) -> dict[int, MemoryBucket]:
        """Buckets of a GPU by minute since 1970; what can't be read is left out."""
        found = ((minute, _memory(raw)) for minute, raw in _minutes(self.gpus.get(gpu, {})))
        return {minute: bucket for minute, bucket in found if bucket is not None}

    def requests(self, model: str) -> dict[int, int]:
        """Jobs that started on a model, retries apart, by minute since 1970; minutes without are left out."""
        days = self.models.get(model, {})
        return {minute: int(raw) for minute, raw in _minutes(days) if raw.isdecimal() and len(raw) < 10}


async def read_history(redis: Redis, keys: Keys, *, gpus: Sequence[str], models: Sequence[str]) -> History:
    """The buckets of these GPUs and models; a name without any has none. Raises ``StoreUnavailable``."""
    async with translating(redis):
        seconds, micros = await redis.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        today = now_ms // 86_400_000
        days = range(today - HISTORY_DAYS, today + 1)
        wanted = [("gpu_history", name) for name in gpus] + [("request_history", name) for name in models]
        # One command a day and name, so that other clients are served in between.
        pipe = redis.pipeline(transaction=False)
        for kind, name in wanted:
            for day in days:
                pipe.hgetall(keys.of(kind, f"{name}:{day}"))
        replies: Any = await pipe.execute()
    pages = iter(replies)
    found = {one: {day: page for day in days if (page := next(pages))} for one in wanted}
    return History(
        now_ms,
        {name: found["gpu_history", name] for name in gpus},
        {name: found["request_history", name] for name in models},
    )


def _minutes(days: Mapping[int, Mapping[str, str]]) -> list[tuple[int, str]]:
    """Minute since 1970 and text of every bucket; anybody may write there, so fields are checked."""
    return [
        (day * _MINUTES_PER_DAY + int(field), raw)
        for day, page in days.items()
        for field, raw in page.items()
        if field.isdecimal() and len(field) <= 4 and int(field) < _MINUTES_PER_DAY
    ]


def _memory(raw: str) -> MemoryBucket | None:
    try:
        figures = [float(part) for part in raw.split()]
    except ValueError:
        return None
    if len(figures) != _FIGURES or not all(math.isfinite(figure) and figure >= 0 for figure in figures):
        return None
    samples, *means = figures
    return MemoryBucket(int(samples), *means)
