"""The id by which one request is found in the logs, the job, the decision and at the backend."""

from __future__ import annotations

from shared.random_ids import random_id
from shared.states import BackendType

HEADER = "X-Request-ID"
MOST_CHARS = 128


def new_request_id() -> str:
    """A fresh one: 128 random bits."""
    return random_id()


def taken(given: str | None) -> str:
    """What a client gave, if it is 1 to 128 characters of printable ASCII; else a new one."""
    if given and len(given) <= MOST_CHARS and given.isascii() and given.isprintable() and given.strip():
        return given.strip()
    return new_request_id()


def at_backend(request_id: str, backend: BackendType, job_id: str, attempt: int) -> str:
    """The id as the backend gets it.

    vLLM makes it the id of what it computes, and refuses one that it still knows (vllm issue 10583): of a
    request that is tried again, or that shares its client's id with others, each attempt needs its own.
    """
    return f"{request_id}.{job_id}.{attempt}" if backend is BackendType.VLLM else request_id
