"""What a decision says, in the words of the wire: the claim that carries it out and its explanation."""

from __future__ import annotations

import json
from collections.abc import Mapping

from shared.decision.recording import record
from shared.decision.snapshot import Decision, Gpu, Model, Part, Request, Snapshot
from shared.states import Action
from shared.store.records import ClaimOrder, GpuClaim

FIRST_LEASE_S = 3.0
"""For the api of an attached job to accept it (architecture, "The OpenAI path")."""


def claim_order(
    job_id: str,
    nonce: str,
    router: str,
    lease_ms: int,
    decision: Decision,
    model: Model,
    snapshot: Snapshot,
    request: Request,
    *,
    registration: str,
    grant: Mapping[str, str] | None = None,
) -> ClaimOrder:
    """The claim for a decision to dispatch to ``model``, whose registration is stored as ``registration``.

    ``grant``: for the api of an attached job.
    """
    return ClaimOrder(
        job_id=job_id,
        nonce=nonce,
        router=router,
        lease_ms=lease_ms,
        model=model.name,
        limit=decision.limit,
        gpus=tuple(
            GpuClaim(gpu, limit, snapshot.gpus[gpu].level_seq if gpu in snapshot.gpus else 0)
            for gpu, limit in decision.gpu_limits.items()
        ),
        fields=_job_fields(decision, model),
        decision=decision_line(router, decision, snapshot, request),
        grant=() if grant is None else _grant(decision, model, grant),
        registration=registration,
    )


def decision_line(router: str, decision: Decision, snapshot: Snapshot, request: Request) -> tuple[str, ...]:
    """The flat fields of one entry in ``orch:decisions``: choice, reason, inputs, score parts."""
    fields: dict[str, str] = {
        "action": decision.action.value,
        "code": decision.code,
        "reason": decision.reason,
        "router": router,
    }
    model = decision.model
    if model is not None:
        fields |= _choice(decision, model)
        part = decision.parts.get(model.name)
        if part is not None:
            fields |= _parts(part)
        for gpu in model.gpus:
            if gpu in snapshot.gpus:
                fields |= _gpu_inputs(snapshot.gpus[gpu])
    fields |= {
        "priority": str(request.priority),
        "prompt_tokens": str(request.prompt_tokens),
        "max_tokens": str(request.max_tokens),
        "min_context_tokens": str(request.min_context_tokens),
        "scores": json.dumps({name: round(part.score, 4) for name, part in decision.parts.items()}),
        "left_out": json.dumps(
            {name: {"code": out.code, "reason": out.reason} for name, out in decision.left_out.items()},
            ensure_ascii=False,
        ),
    }
    inputs = record(snapshot, request)
    if inputs is not None:
        fields["inputs"] = inputs
    return tuple(item for pair in fields.items() for item in pair)


def _choice(decision: Decision, model: Model) -> dict[str, str]:
    fields = {
        "model": model.name,
        "backend": model.backend.value,
        "url": model.url,
        "gpu": ",".join(model.gpus),
    }
    if model.port is not None:
        fields["port"] = str(model.port)
    if decision.estimated_duration_ms is not None:
        fields["estimated_duration_ms"] = f"{decision.estimated_duration_ms:.0f}"
    return fields


def _job_fields(decision: Decision, model: Model) -> Mapping[str, str]:
    fields = {"action": Action.DISPATCH.value, "code": decision.code, "reason": decision.reason}
    fields |= {"port": "", "estimated_duration_ms": ""}
    fields |= _choice(decision, model)
    return {f"decision_{name}": value for name, value in fields.items()}


def _grant(decision: Decision, model: Model, grant: Mapping[str, str]) -> tuple[str, ...]:
    fields = {
        **_choice(decision, model),
        "upstream_name": model.upstream_name,
        "code": decision.code,
        "reason": decision.reason,
        **grant,
    }
    return tuple(item for pair in fields.items() for item in pair)


def _parts(part: Part) -> dict[str, str]:
    return {
        "score": f"{part.score:.4g}",
        "score_load": f"{part.load:.4g}",
        "score_speed": f"{part.speed:.4g}",
        "score_failures": f"{part.failures:.4g}",
        "score_affinity": f"{part.affinity:.4g}",
        "score_mode": f"{part.mode:.4g}",
        "score_size": f"{part.size:.4g}",
        "busy": str(part.busy),
        "limit": str(part.limit),
    }


def _gpu_inputs(gpu: Gpu) -> dict[str, str]:
    numbers = {
        "effective_utilization": gpu.effective_utilization,
        "memory_used_mb": gpu.memory_used_mb,
        "memory_total_mb": gpu.memory_total_mb,
        "temperature_c": gpu.temperature_c,
        "power_draw_w": gpu.power_draw_w,
        "sample_age_ms": gpu.sample_age_ms,
    }
    known = {name: f"{value:.4g}" for name, value in numbers.items() if value is not None}
    return {"pressure": gpu.pressure.value, "thermal": gpu.thermal.value, **known}
