"""Redis connections with explicit time-outs and retries, and the checks before a server is used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import StoreUnavailable, StoreUnusable
from shared.store.lines import LineClient
from shared.store.wire import CommandClient

BLOCK_S = 1.0
"""How long a blocking read waits in the server; the reader's socket time-out must exceed it (hazard H4)."""
_READER_MARGIN_S = 5.0
_MINIMUM_VERSION = (7, 0)
_TRANSIENT = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError)
_TRANSIENT_PREFIXES = (
    "BUSY ",
    "MISCONF",
    "LOADING",
    "READONLY",
    "OOM",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
)


def connect_commands(url: str, name: str, *, fail_fast: bool = False, connections: int = 32) -> CommandClient:
    """A client for scripts and short reads.

    Its retries are safe because every script is safe under its own replay. ``fail_fast`` is for a process
    with an impatient caller (the api answers 503 and lets the client retry); others wait for Redis longer.
    """
    retry = Retry(NoBackoff(), 1) if fail_fast else Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 5)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=2 if fail_fast else 5,
        socket_timeout=2 if fail_fast else 5,
        socket_connect_timeout=1 if fail_fast else 3,
        health_check_interval=15,
        client_name=f"{name}.cmd",
        retry=retry,
        **_WIRE,
    )
    client = CommandClient.from_pool(pool)
    assert isinstance(client, CommandClient)
    return client


def connect_reader(url: str, name: str, *, connections: int = 4) -> LineClient:
    """A client for blocking reads: never retried, since a retried XREADGROUP would lose entries (H3)."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=5,
        socket_timeout=BLOCK_S + _READER_MARGIN_S,
        socket_connect_timeout=3,
        client_name=f"{name}.read",
        retry=Retry(NoBackoff(), 0),
        **_WIRE,
    )
    client = LineClient.from_pool(pool)
    assert isinstance(client, LineClient)
    return client


_WIRE = {
    "protocol": 3,
    "legacy_responses": False,
    "decode_responses": True,
    # Anybody may XADD bytes that are no UTF-8: they must reach the dead-letter stream, not kill the reader.
    "encoding_errors": "backslashreplace",
}


@asynccontextmanager
async def translating(redis: Redis) -> AsyncIterator[None]:
    """Turn "Redis can't be used right now" in all its forms into ``StoreUnavailable``; let bugs through.

    redis-py sends through ``asyncio.wait_for``, which in Python 3.11 forgets a cancellation that comes as its
    inner call is done: a loop around the call would then run for ever, so it is made up for here.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task is not None else 0
    try:
        yield
        if task is not None and task.cancelling() > cancellations:
            raise asyncio.CancelledError
    except REDIS_ERRORS as error:
        raise await translated(redis, error) from error


REDIS_ERRORS = (ReadOnlyError, *_TRANSIENT, ResponseError)
"""What ``translated`` is for."""


async def translated(redis: Redis, error: Exception) -> Exception:
    """``StoreUnavailable`` for an error that only says that Redis can't be used now; any other as it is."""
    if isinstance(error, ReadOnlyError):
        # After a failover idle connections still lead to the demoted node.
        await redis.connection_pool.disconnect(inuse_connections=False)
        return StoreUnavailable(str(error))
    if isinstance(error, _TRANSIENT):
        return StoreUnavailable(str(error) or type(error).__name__)
    if str(error).startswith(_TRANSIENT_PREFIXES):
        return StoreUnavailable(str(error))
    return error


async def check_server(redis: Redis) -> list[str]:
    """Refuse a server that would lose jobs; return warnings for one that merely may.

    Raises ``StoreUnusable`` for a version under 7.0, an evicting memory policy or a refused password,
    ``StoreUnavailable`` when it does not answer.
    """
    try:
        async with translating(redis):
            server = await redis.info("server")
            memory = await redis.info("memory")
            persistence = await redis.info("persistence")
    except StoreUnavailable as error:
        # To redis-py this is a ConnectionError; waiting for it to pass would be waiting for ever.
        if isinstance(error.__cause__, AuthenticationError):
            raise StoreUnusable(
                f"Redis refuses the user or password of redis.url: {error.__cause__}"
            ) from error
        raise
    version = str(server.get("redis_version", "0"))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < _MINIMUM_VERSION:
        raise StoreUnusable(f"Redis {version} is too old: 7.0 or newer (or Valkey 8) is needed")
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise StoreUnusable(
            f"Redis evicts keys (maxmemory-policy {policy}), which loses jobs: "
            "CONFIG SET maxmemory-policy noeviction"
        )
    if not int(persistence.get("aof_enabled", 0)):
        return [
            "Redis keeps no append-only file, so a restart loses accepted jobs: CONFIG SET appendonly yes"
        ]
    return []


async def wait_for_server(redis: Redis) -> list[str]:
    """``check_server``, waiting as long as it takes for Redis to answer."""
    delay_s = 0.1
    while True:
        try:
            return await check_server(redis)
        except StoreUnavailable:
            await asyncio.sleep(delay_s)
            delay_s = min(2.0, delay_s * 2)
