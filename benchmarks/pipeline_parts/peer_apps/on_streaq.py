"""The service on streaq: `uvicorn ...on_streaq:door` and `streaq run ...on_streaq:worker`."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.pipeline_parts.peer_apps.calls import AsyncCalls
from benchmarks.pipeline_parts.peer_apps.door import REDIS_URL, Payload, create_door

# Not there in our own environment, so neither for our type checker.
_streaq: Any = importlib.import_module("streaq")
_calls = AsyncCalls()

worker: Any = _streaq.Worker(redis_url=REDIS_URL, concurrency=64)


async def complete(payload: Payload) -> str:
    return await _calls.complete(payload)


_task: Any = worker.task()(complete)


async def _enqueue(payload: Payload) -> str:
    return str((await _task.enqueue(payload)).id)


door = create_door(_enqueue, lambda: worker)
