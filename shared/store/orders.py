"""What the scripts of a job's life are asked for, as their JSON arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from shared.store.records import ClaimOrder, NewJob
from shared.store.scripts import encoded

KEPT_HOLD_CODES = ("model_busy", "gpu_busy", "claimed_busy")
"""Hold reasons that stay true for the rest of a queue after its head was taken."""


def claim_order(order: ClaimOrder) -> bytes:
    """The argument of ``claim``."""
    return encoded(
        {
            "id": order.job_id,
            **start_order(order),
            "keep_holds": dict.fromkeys(KEPT_HOLD_CODES, True),
            "grant": list(order.grant),
            **({"alone": order.alone} if order.alone else {}),
        }
    )


def start_order(order: ClaimOrder) -> dict[str, Any]:
    """The part of ``claim`` and ``submit`` that starts a job: what start.lua reads."""
    start: dict[str, Any] = {
        "nonce": order.nonce,
        "router": order.router,
        "lease_ms": order.lease_ms,
        "model": order.model,
        "limit": order.limit,
        "gpus": [{"id": gpu.id, "limit": gpu.limit, "level_seq": gpu.level_seq} for gpu in order.gpus],
        "fields": dict(order.fields),
        "decision": order.decision,
    }
    if order.registration:
        start["registration"] = order.registration
    return start


def job_order(job: NewJob) -> dict[str, Any]:
    """The part of ``submit`` and ``admit`` that makes the job."""
    order: dict[str, Any] = {
        "id": job.id,
        "target": job.target,
        "boost_ms": job.boost_ms,
        "deadline_in_ms": job.deadline_in_ms,
        "fields": dict(job.fields),
    }
    if job.caller is not None:
        order["caller"] = job.caller
    if job.attached_to is not None:
        order["attached_to"] = job.attached_to
    if job.limits is not None:
        limits = asdict(job.limits)
        order["limits"] = {name: value for name, value in limits.items() if value is not None}
    return order


def verdict_order(job_id: str, code: str, reason: str, decision: Sequence[str]) -> bytes:
    """The argument of ``hold`` and ``reject``."""
    return encoded({"id": job_id, "code": code, "reason": reason, "decision": list(decision)})
