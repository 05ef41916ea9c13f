"""Models in the order of routing, from the same core on the same view, with what the order stands on."""

from __future__ import annotations

from dataclasses import dataclass

from services.api.ranking_bodies import RankedModel, Ranking, RankingQuery, ScoreParts
from services.api.representations import Decision as DecisionBody
from services.api.status import gpu_statuses, nothing_sampled
from services.api.status_bodies import GpuStatus
from shared.config import Settings
from shared.decision.capacity import GpuRoom, ModelRoom, gpu_rooms, model_room
from shared.decision.estimate import service_s, tokens_per_second
from shared.decision.explain import situation
from shared.decision.footprint import needs_mb
from shared.decision.placement import occupancy
from shared.decision.readings import finite
from shared.decision.routing import Ranked, decide, rank
from shared.decision.snapshot import Decision, Model, Part, Request, Snapshot
from shared.jobs import AUTO
from shared.registry import Registration
from shared.snapshots import snapshot_of
from shared.states import Residence
from shared.store.records import View

_CANDIDATE = "candidate"
_OTHER_AGENT = 1 / 1.5
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class _Scene:
    """One look at the fleet with one request; ``fastest_s`` is the best service time of a candidate."""

    snapshot: Snapshot
    request: Request
    entries: dict[str, Registration]
    simulated: frozenset[str]
    rooms: dict[str, GpuRoom]
    fastest_s: float


def request_for(query: RankingQuery, settings: Settings) -> Request:
    """The request as routing would see the job that a caller submits with these fields."""
    defaults = settings.jobs
    model = None if query.model == AUTO else query.model
    return Request(
        model=model,
        agent_type=query.agent_type,
        prompt_tokens=query.prompt_tokens,
        max_tokens=query.max_tokens or defaults.max_tokens,
        min_context_tokens=query.min_context_tokens,
        prefer_llama_cpp=query.prefer_llama_cpp,
        priority=defaults.priority if query.priority is None else query.priority,
        mode=query.mode,
        fallback=model is None,
        deadline_in_ms=defaults.deadline_s * 1000,
    )


def ranking(view: View, request: Request, settings: Settings) -> Ranking:
    """``Ranked`` models first, then the others with what keeps each from the request."""
    snapshot = snapshot_of(view, settings)
    decision, ranked = decide(snapshot, request), rank(snapshot, request)
    candidates = [one.model for one in ranked] or list(snapshot.models.values())
    scene = _Scene(
        snapshot=snapshot,
        request=request,
        entries={entry.registration.name: entry.registration for entry in view.models},
        simulated=frozenset(
            entry.registration.name
            for entry in view.models
            if entry.registration.simulated or entry.fields.get("simulated") == "1"
        ),
        rooms=gpu_rooms(snapshot),
        fastest_s=min((service_s(model, request) for model in candidates), default=0.0),
    )
    scores = _scores([one.part for one in ranked])
    models = [_ranked(scene, decision, ranked, at, scores[at]) for at in range(len(ranked))]
    known = {one.model for one in models}
    models += [_left_out(scene, decision, name) for name in sorted(snapshot.models) if name not in known]
    gpus = gpu_statuses(view, settings)
    return Ranking(
        decision=_decision(decision, scene),
        models=models,
        notes=_notes(gpus, snapshot, settings),
        gpus=gpus,
        simulated=bool(scene.simulated) or any(gpu.source == "simulated" for gpu in gpus),
    )


def _scores(parts: list[Part]) -> list[float]:
    """The lowest routing score over each one's, never rising: within a tie the order says who is ahead."""
    lowest = min((part.score for part in parts), default=1.0)
    scores: list[float] = []
    for part in parts:
        scores.append(round(min(scores[-1], lowest / part.score), _DIGITS) if scores else 1.0)
    return scores


def _ranked(
    scene: _Scene, decision: Decision, ranked: tuple[Ranked, ...], at: int, score: float
) -> RankedModel:
    one = ranked[at]
    first = at == 0
    room = model_room(one.model, scene.rooms)
    part = one.part
    reason = decision.reason if first else _behind(room, part, ranked[0])
    return _body(
        scene,
        room,
        part,
        rank=at + 1,
        score=score,
        code=decision.code if first else _CANDIDATE,
        reason=reason,
        chosen=first and decision.model is not None and decision.model.name == one.model.name,
        estimated_duration_ms=round(one.estimated_duration_ms, 1),
    )


def _behind(room: ModelRoom, part: Part, best: Ranked) -> str:
    model = room.model
    return (
        f"{model.name} ({model.backend.value}) comes after {best.model.name}: score {part.score:.2f} against "
        f"{best.part.score:.2f} (lower is better), {part.busy} of {part.limit} slots busy, about "
        f"{tokens_per_second(model):.0f} tokens/s; {situation(room)}"
    )


def _left_out(scene: _Scene, decision: Decision, name: str) -> RankedModel:
    out = decision.left_out.get(name)
    return _body(
        scene,
        model_room(scene.snapshot.models[name], scene.rooms),
        None,
        rank=None,
        score=0.0,
        code=out.code if out else decision.code,
        reason=f"{name}: {out.reason}" if out else decision.reason,
        chosen=False,
        estimated_duration_ms=None,
    )


def _body(
    scene: _Scene,
    room: ModelRoom,
    part: Part | None,
    *,
    rank: int | None,
    score: float,
    code: str,
    reason: str,
    chosen: bool,
    estimated_duration_ms: float | None,
) -> RankedModel:
    model = room.model
    return RankedModel(
        rank=rank,
        model=model.name,
        backend=model.backend,
        port=scene.entries[model.name].listening_port,
        url=model.url,
        gpu=",".join(model.gpus) or None,
        score=score,
        parts=_parts(scene, room, part),
        code=code,
        reason=reason,
        would_be_chosen=chosen,
        estimated_duration_ms=estimated_duration_ms,
        residence=model.residence,
        vram_gb=model.vram_gb,
        in_flight=model.in_flight,
        simulated=model.name in scene.simulated,
    )


def _parts(scene: _Scene, room: ModelRoom, part: Part | None) -> ScoreParts:
    model, request = room.model, scene.request
    own_s = service_s(model, request)
    suits = request.agent_type is None or request.agent_type in model.agent_types
    failures = finite(model.failure_ema)
    fit = _fit(model, scene.snapshot)
    return ScoreParts(
        fit=None if fit is None else round(fit, _DIGITS),
        latency=round(min(1.0, scene.fastest_s / own_s) if own_s > 0 else 1.0, _DIGITS),
        reliability=round(1 - min(1.0, max(0.0, 1.0 if failures is None else failures)), _DIGITS),
        affinity=round(1.0 if suits else _OTHER_AGENT, _DIGITS),
        load=round(max(0.0, 1 - room.busy / room.limit) if room.limit > 0 else 0.0, _DIGITS),
        mode=1.0 if part is None else round(1 / part.mode, _DIGITS),
        size=1.0 if part is None else round(1 / part.size, _DIGITS),
        routing_score=None if part is None else round(part.score, _DIGITS),
    )


def _fit(model: Model, snapshot: Snapshot) -> float | None:
    """1 if resident; else the share that its load would leave free of the roomiest GPU that it may go to."""
    if model.residence is Residence.RESIDENT:
        return 1.0
    needed = needs_mb(model)
    if needed is None or model.residence is Residence.UNKNOWN:
        return None
    shares = []
    for gpu_id in model.loadable_on or model.gpus:
        place = occupancy(snapshot, gpu_id)
        total, free = finite(place.gpu.memory_total_mb), place.available_mb
        if total is not None and total > 0 and free is not None:
            shares.append(min(1.0, max(0.0, (free - needed) / total)))
    return max(shares, default=None)


def _decision(decision: Decision, scene: _Scene) -> DecisionBody:
    model = decision.model
    estimate = decision.estimated_duration_ms
    return DecisionBody(
        action=decision.action,
        model=None if model is None else model.name,
        backend=None if model is None else model.backend,
        port=None if model is None else scene.entries[model.name].listening_port,
        url=None if model is None else model.url,
        gpu=None if model is None else ",".join(model.gpus) or None,
        reason=decision.reason,
        code=decision.code,
        estimated_duration_ms=None if estimate is None else round(estimate, 1),
    )


def _notes(gpus: list[GpuStatus], snapshot: Snapshot, settings: Settings) -> list[str]:
    if not gpus:
        return [nothing_sampled(settings)]
    notes = [f"GPU {gpu.gpu}: {gpu.detail}" for gpu in gpus if gpu.detail is not None]
    if len(gpus) > 1:
        unplaced = sorted(model.name for model in snapshot.models.values() if not model.gpus)
        if unplaced:
            notes.append(f"which of the {len(gpus)} GPUs holds {', '.join(unplaced)} is not known")
    return notes
