"""What the scripts of a job's life are asked for, as their arguments.

An order is JSON. What a script only passes on to Redis are its ``words``, flat (field, value, ...): a Lua
table by name costs more, and so do arguments of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from shared.store.records import ClaimOrder, NewJob
from shared.store.scripts import encoded

KEPT_HOLD_CODES = ("model_busy", "gpu_busy", "claimed_busy")
"""Hold reasons that stay true for the rest of a queue after its head was taken."""
_KEPT_HOLDS = dict.fromkeys(KEPT_HOLD_CODES, True)


def claim_order(order: ClaimOrder) -> bytes:
    """The argument of ``claim`` for one job."""
    start = start_order(order)
    return encoded(
        {
            "id": order.job_id,
            **start,
            "keep_holds": _KEPT_HOLDS,
            **({"alone": order.alone} if order.alone else {}),
        }
    )


def start_order(order: ClaimOrder) -> dict[str, Any]:
    """The part of ``claim`` and ``submit`` that starts a job: what start.lua reads.

    Its words are fields of the job's hash, of the decision and of the grant, in this order.
    """
    fields = _flat(_start_fields(order))
    start: dict[str, Any] = {
        "nonce": order.nonce,
        "router": order.router,
        "lease_ms": order.lease_ms,
        "model": order.model,
        "backend": order.fields.get("decision_backend", ""),
        "reason": order.fields.get("decision_reason", ""),
        "limit": order.limit,
        "gpus": [{"id": gpu.id, "limit": gpu.limit, "level_seq": gpu.level_seq} for gpu in order.gpus],
        "fields": len(fields),
        "decision": len(order.decision),
        "grant": len(order.grant),
        "words": [*fields, *order.decision, *order.grant],
    }
    if order.registration:
        start["registration"] = order.registration
    return start


def job_order(job: NewJob, start: ClaimOrder | None = None) -> dict[str, Any]:
    """The part of ``submit`` and ``admit`` that makes the job.

    Its words are the fields of the job's hash that are known before it is accepted, then those of ``start``.
    """
    fields = _flat(_job_fields(job))
    order: dict[str, Any] = {
        "id": job.id,
        "target": job.target,
        "priority": job.fields.get("priority", ""),
        "request_id": job.fields.get("request_id", ""),
        "boost_ms": job.boost_ms,
        "deadline_in_ms": job.deadline_in_ms,
        "fields": len(fields),
        "words": fields,
    }
    if start is not None:
        order["start"] = start_order(start)
        order["words"] = fields + order["start"].pop("words")
    if job.caller is not None:
        order["caller"] = job.caller
    if job.attached_to is not None:
        order["attached_to"] = job.attached_to
    if job.limits is not None:
        limits = asdict(job.limits)
        order["limits"] = {name: value for name, value in limits.items() if value is not None}
        if _metered_by(job) is not None:
            order["metered"] = _metered_by(job)
    return order


def verdict_order(job_id: str, code: str, reason: str, decision: Sequence[str]) -> bytes:
    """The argument of ``hold`` and ``reject``."""
    return encoded({"id": job_id, "code": code, "reason": reason, "words": decision})


def _start_fields(order: ClaimOrder) -> Mapping[str, str]:
    """All but what start.lua says itself: the slot that it takes is the one to be given back."""
    return {name: value for name, value in order.fields.items() if name != "decision_model"}


def _job_fields(job: NewJob) -> dict[str, str]:
    known = {
        "v": "1",
        "job_id": job.id,
        "target": job.target,
        "caller": job.caller or "",
        "boost_ms": str(job.boost_ms),
    }
    metered = _metered_by(job)
    if metered is not None:
        known["metered"] = metered
    if job.attached_to is not None:
        known["attached_to"] = job.attached_to
    return {**job.fields, **known}


def _metered_by(job: NewJob) -> str | None:
    """The API key that counts the jobs that it has, None where none does."""
    limits = job.limits
    if limits is None or (limits.in_flight is None and limits.queued is None):
        return None
    return limits.key


def _flat(fields: Mapping[str, str]) -> list[str]:
    return list(chain.from_iterable(fields.items()))
