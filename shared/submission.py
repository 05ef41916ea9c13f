"""From a validated request to a job that the store can accept, for the api and for the intake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from pydantic_core import to_json

from shared.config import Settings
from shared.errors import InvalidRequest
from shared.jobs import JobRequest
from shared.random_ids import random_id
from shared.registry import Registration
from shared.request_ids import new_request_id
from shared.store.records import NewJob

MOST_METADATA = 16_384
"""Characters of ``metadata`` as JSON: it lives in the job's hash, which lists and answers read whole."""


def new_job_id() -> str:
    """A fresh id: 128 random bits, so that two apis never meet."""
    return random_id()


def new_job(request: JobRequest, settings: Settings, job_id: str, request_id: str = "") -> NewJob:
    """Complete a request with the configured defaults; ``request_id``: of the request that it came with.

    Raises ``InvalidRequest`` if it is larger than ``jobs.max_request_bytes``.
    """
    defaults = settings.jobs
    body = to_json(request.backend_body(defaults))
    metadata = json.dumps(request.metadata) if request.metadata else ""
    if len(metadata) > MOST_METADATA:
        raise InvalidRequest(
            "metadata", f"has {len(metadata)} characters as JSON, more than {MOST_METADATA}: shorten it"
        )
    size = len(body) + len(metadata)
    if size > defaults.max_request_bytes:
        raise InvalidRequest(
            "prompt" if request.prompt is not None else "messages",
            f"the request has {size} bytes, more than jobs.max_request_bytes = {defaults.max_request_bytes}: "
            "shorten it",
        )
    priority = defaults.priority if request.priority is None else request.priority
    fields = {
        "model": request.named_model or "",
        "agent_type": request.agent_type or "",
        "mode": request.mode or "",
        "priority": str(priority),
        "prompt_tokens": str(request.prompt_tokens_estimate),
        "max_tokens": str(request.max_tokens or defaults.max_tokens),
        "min_context_tokens": str(request.min_context_tokens),
        "prefer_llama_cpp": str(int(request.prefer_llama_cpp)),
        "fallback": str(int(request.wants_fallback)),
        "max_attempts": str(request.max_attempts or defaults.max_attempts),
        "caller": request.caller or "",
        "metadata": metadata,
        "request_id": request_id or new_request_id(),
    }
    return NewJob(
        id=job_id,
        target=request.target,
        boost_ms=round(priority * settings.queue.priority_step_s * 1000),
        deadline_in_ms=round((request.deadline_s or defaults.deadline_s) * 1000),
        fields=fields,
        body=body,
        caller=request.caller,
    )


def check_known(request: JobRequest, registrations: Iterable[Registration]) -> None:
    """Refuse a model or an agent type that nobody registered; the message lists what exists."""
    entries = list(registrations)
    models = {name for entry in entries for name in entry.served_names}
    if request.named_model is not None and request.named_model not in models:
        raise InvalidRequest(
            "model", f"{request.named_model!r} is not registered; known: {_listed(models) or 'none yet'}"
        )
    if request.agent_type is None:
        return
    agents = {agent for entry in entries for agent in entry.agent_types}
    if request.agent_type not in agents and not any(not entry.agent_types for entry in entries):
        raise InvalidRequest(
            "agent_type",
            f"{request.agent_type!r} is served by no model; known: {_listed(agents) or 'none yet'}",
        )


def request_digest(body: bytes) -> str:
    """What an idempotency key is compared by: the hash of the request as it was sent."""
    return hashlib.sha256(body).hexdigest()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
