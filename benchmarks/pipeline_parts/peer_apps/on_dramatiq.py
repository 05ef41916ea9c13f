"""The service on dramatiq: `uvicorn ...on_dramatiq:door` and `dramatiq ...on_dramatiq`."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

from starlette.concurrency import run_in_threadpool

from benchmarks.pipeline_parts.peer_apps.calls import ThreadCalls
from benchmarks.pipeline_parts.peer_apps.door import REDIS_URL, Payload, create_door

# Not there in our own environment, so neither for our type checker.
_dramatiq: Any = importlib.import_module("dramatiq")
_brokers: Any = importlib.import_module("dramatiq.brokers.redis")
_calls = ThreadCalls()

_dramatiq.set_broker(_brokers.RedisBroker(url=REDIS_URL))


def complete(payload: Payload) -> None:
    """Without the middleware for results, which is not there by default, an answer is dropped."""
    _calls.complete(payload)


_actor: Any = _dramatiq.actor(complete)


async def _enqueue(payload: Payload) -> str:
    # It sends over a blocking client, which must not hold up the door's loop.
    return str((await run_in_threadpool(_actor.send, payload)).message_id)


door = create_door(_enqueue, lambda: nullcontext())
