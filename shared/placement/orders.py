"""What a decision says, in the words of the wire: the claim that carries it out and its explanation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from json.encoder import encode_basestring_ascii as _quoted

from shared.decision.memo import lasting, once
from shared.decision.recording import record
from shared.decision.snapshot import Decision, Gpu, Model, Part, Request, Snapshot
from shared.json_text import as_it_is
from shared.states import Action
from shared.store.grants import Grant
from shared.store.records import ClaimOrder, GpuClaim

FIRST_LEASE_S = 3.0
"""For whoever is told to run a job to accept it (architecture, "The OpenAI path")."""


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

    ``grant``: what else whoever is told to run it must know.
    """
    told = _told(model, snapshot)
    estimate = _estimate(decision)
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
        fields={
            **told.job,
            "decision_code": str(decision.code),
            "decision_reason": decision.reason,
            "decision_estimated_duration_ms": estimate,
        },
        decision=decision_line(router, decision, snapshot, request),
        grant=() if grant is None else _grant(decision, model, told, grant),
        registration=registration,
    )


def grant_of(
    decision: Decision,
    model: Model,
    *,
    job_id: str,
    attempt: int,
    tries: int,
    api_key_env: str | None,
    now_ms: int,
) -> Grant:
    """What a decision says to whoever runs it in the process that decided; ``now_ms``: of its start."""
    return Grant(
        job_id=job_id,
        attempt=attempt,
        tries=tries,
        model=model.name,
        backend=model.backend,
        url=model.url,
        upstream_name=model.upstream_name,
        api_key_env=api_key_env,
        gpu=",".join(model.gpus),
        code=str(decision.code),
        reason=decision.reason,
        estimated_duration_ms=decision.estimated_duration_ms,
        granted_ms=now_ms,
    )


def decision_line(router: str, decision: Decision, snapshot: Snapshot, request: Request) -> tuple[str, ...]:
    """The flat fields of one entry in ``orch:decisions``: choice, reason, inputs, score parts."""
    fields: dict[str, str] = {
        "action": decision.action.value,
        "code": str(decision.code),  # an enum's member is slow to write
        "reason": decision.reason,
        "router": router,
    }
    model = decision.model
    if model is not None:
        told = _told(model, snapshot)
        fields |= told.choice
        if estimate := _estimate(decision):
            fields["estimated_duration_ms"] = estimate
        part = decision.parts.get(model.name)
        if part is not None:
            fields |= _parts(part)
        fields |= told.gpus
    left_out = {name: {"code": out.code, "reason": out.reason} for name, out in decision.left_out.items()}
    fields |= {
        "priority": str(request.priority),
        "prompt_tokens": str(request.prompt_tokens),
        "max_tokens": str(request.max_tokens),
        "min_context_tokens": str(request.min_context_tokens),
        "scores": _scores(decision.parts),
        "left_out": as_it_is(left_out) if left_out else "{}",
    }
    inputs = record(snapshot, request)
    if inputs is not None:
        fields["inputs"] = inputs
    return tuple(chain.from_iterable(fields.items()))


@dataclass(frozen=True, slots=True)
class _Told:
    """What every decision for a model says of it at one moment: of itself, of its GPUs, and in the job."""

    choice: Mapping[str, str]
    gpus: Mapping[str, str]
    job: Mapping[str, str]


def _told(model: Model, snapshot: Snapshot) -> _Told:
    return once(lasting(snapshot.memo), ("told", model.name), lambda: _tell(model, snapshot))


def _tell(model: Model, snapshot: Snapshot) -> _Told:
    choice = {
        "model": model.name,
        "backend": model.backend.value,
        "url": model.url,
        "gpu": ",".join(model.gpus),
    }
    if model.port is not None:
        choice["port"] = str(model.port)
    gpus: dict[str, str] = {}
    for gpu in model.gpus:
        if gpu in snapshot.gpus:
            gpus |= _gpu_inputs(snapshot.gpus[gpu])
    # An earlier attempt's port and estimate must not stay in the job.
    job = {"action": Action.DISPATCH.value, "code": "", "reason": "", "port": "", "estimated_duration_ms": ""}
    return _Told(choice, gpus, {f"decision_{name}": value for name, value in {**job, **choice}.items()})


def _estimate(decision: Decision) -> str:
    """In ms, empty where it is not known."""
    estimate = decision.estimated_duration_ms
    return "" if estimate is None else f"{estimate:.0f}"


def _grant(decision: Decision, model: Model, told: _Told, grant: Mapping[str, str]) -> tuple[str, ...]:
    fields = dict(told.choice)
    if estimate := _estimate(decision):
        fields["estimated_duration_ms"] = estimate
    fields |= {
        "upstream_name": model.upstream_name,
        "code": decision.code,
        "reason": decision.reason,
        **grant,
    }
    return tuple(chain.from_iterable(fields.items()))


def _scores(parts: Mapping[str, Part]) -> str:
    """As JSON: all are finite, and an encoder takes as long for one as for a hundred."""
    return "{" + ", ".join(f"{_quoted(name)}: {round(part.score, 4)}" for name, part in parts.items()) + "}"


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
