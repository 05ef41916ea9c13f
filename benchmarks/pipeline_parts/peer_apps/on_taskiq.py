"""The service on taskiq-redis: `uvicorn ...on_taskiq:door` and `taskiq worker ...on_taskiq:broker`."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.pipeline_parts.peer_apps.calls import AsyncCalls
from benchmarks.pipeline_parts.peer_apps.door import REDIS_URL, Payload, create_door

# Not there in our own environment, so neither for our type checker.
_taskiq_redis: Any = importlib.import_module("taskiq_redis")
_calls = AsyncCalls()
_KEPT_S = 86_400
"""How long a result is kept: as long as ours."""

broker: Any = _taskiq_redis.RedisStreamBroker(REDIS_URL).with_result_backend(
    _taskiq_redis.RedisAsyncResultBackend(REDIS_URL, result_ex_time=_KEPT_S)
)


async def complete(payload: Payload) -> str:
    return await _calls.complete(payload)


_task: Any = broker.task(complete)


async def _enqueue(payload: Payload) -> str:
    return str((await _task.kiq(payload)).task_id)


@asynccontextmanager
async def _opened() -> AsyncIterator[None]:
    await broker.startup()
    try:
        yield
    finally:
        await broker.shutdown()


door = create_door(_enqueue, _opened)
