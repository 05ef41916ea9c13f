"""The decisions as the routers leave them in Redis: the last ones, and those that come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.config import Settings
from shared.errors import ConfigError
from shared.keys import Keys
from shared.masking import masked
from shared.store.client import connect_commands, connect_reader
from shared.store.records import StreamEntry
from shared.store.streams import Follower, read_range


def last(url: str, settings: Settings, count: int) -> list[StreamEntry]:
    """The newest entries, oldest of them first; raises ``StoreUnavailable``."""
    return asyncio.run(_last(url, settings, count))


def follow(url: str, settings: Settings, count: int, seen: Callable[[StreamEntry], None]) -> None:
    """Call ``seen`` with the newest entries, then with those that come, until Ctrl-C."""
    asyncio.run(_follow(url, settings, count, seen))


async def _follow(url: str, settings: Settings, count: int, seen: Callable[[StreamEntry], None]) -> None:
    entries = await _last(url, settings, max(count, 1))
    for entry in entries[-count:] if count else []:
        seen(entry)
    reader = connect_reader(url, "cli")
    try:
        follower = Follower(reader, {_stream(settings): entries[-1].id if entries else "0-0"})
        while not _interrupted():
            for _, entry in await follower.read():
                seen(entry)
        raise asyncio.CancelledError
    finally:
        await reader.aclose()


async def _last(url: str, settings: Settings, count: int) -> list[StreamEntry]:
    try:
        redis = connect_commands(url, "cli", fail_fast=True)
    except ValueError as error:
        raise ConfigError(f"redis.url = {masked(url)!r}: {error}") from None
    try:
        newest = await read_range(redis, _stream(settings), count=count, newest_first=True) if count else []
    finally:
        await redis.aclose()
    return newest[::-1]


def _stream(settings: Settings) -> str:
    return Keys(settings.redis.namespace).decisions


def _interrupted() -> bool:
    """Whether Ctrl-C was pressed and got lost.

    It cancels this task, and redis-py reads with a time-out of 0 in between, which on Python 3.11 can take
    that cancellation for its own and end it.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
