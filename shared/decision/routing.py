"""Which model takes a request now: filter, score, pick; else what it waits for, or why none ever will."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shared.decision.capacity import ModelRoom, room_of
from shared.decision.causes import NEAREST_FIRST, Cause, Choice
from shared.decision.estimate import duration_ms
from shared.decision.explain import dispatch_reason, listed, unprobed_words
from shared.decision.filters import obstacle
from shared.decision.load_reasons import NOT_CARRIED_OUT, plan_words
from shared.decision.loading import plan_for
from shared.decision.readings import finite
from shared.decision.scoring import order, pick, score
from shared.decision.serving import Serving, serving
from shared.decision.snapshot import Decision, LeftOut, Model, Obstacle, Part, Plan, Request, Snapshot
from shared.states import Action, Residence

_NEARNESS = {cause.value: rank for rank, cause in enumerate(NEAREST_FIRST)}
_PAUSES = frozenset({Cause.BREAKER_OPEN, Cause.SATURATED, Cause.NAME_UNKNOWN})
_ABSENT = frozenset({Residence.UNLOADED, Residence.SLEEPING})
_MOST_OTHERS = 3


@dataclass(frozen=True, slots=True)
class Ranked:
    """One candidate in the order of routing; ``estimated_duration_ms`` is of a whole answer."""

    model: Model
    part: Part
    estimated_duration_ms: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What the filter made of the models; ``fell_back``: the candidates are those of the second choice."""

    candidates: list[ModelRoom]
    left_out: dict[str, LeftOut]
    fell_back: bool


def decide(snapshot: Snapshot, request: Request) -> Decision:
    """Dispatch to the best model, hold with cause and remedy, or reject what no model could ever serve.

    Depends on nothing but its arguments, not even on the order of the mappings. A named model that nobody
    answers to is rejected also with ``fallback``: that wish is about when, not about whether the name exists.
    """
    if not snapshot.models:
        return Decision(
            Action.HOLD,
            Cause.NOT_SERVING,
            "no model is registered yet; it goes on when one is, in the configuration file or by "
            "POST /v1/gpu/models",
        )
    choice = serving(snapshot, request)
    refusal = _refusal(snapshot, request, choice)
    if refusal is not None:
        return refusal
    outcome = _filter(snapshot, request, choice)
    return _dispatch(request, choice, outcome) if outcome.candidates else _hold(snapshot, choice, outcome)


def rank(snapshot: Snapshot, request: Request) -> tuple[Ranked, ...]:
    """Every model that could take the request now, best first; the first is the one ``decide`` takes."""
    choice = serving(snapshot, request)
    if not snapshot.models or _refusal(snapshot, request, choice) is not None:
        return ()
    candidates = _filter(snapshot, request, choice).candidates
    parts = score(candidates, request)
    return tuple(
        Ranked(room.model, parts[room.model.name], duration_ms(room.model, request))
        for room in order(candidates, parts)
    )


def _refusal(snapshot: Snapshot, request: Request, choice: Serving) -> Decision | None:
    models = snapshot.models.values()
    if request.model is not None and not choice.first:
        known = {name for model in models for name in model.serves}
        return _reject(
            snapshot,
            request,
            Cause.UNKNOWN_MODEL,
            f"no model answers to {request.model!r}; known are {listed(known)}: name one of them, "
            "or register it by POST /v1/gpu/models",
        )
    if not choice.accepted:
        known = {agent_type for model in models for agent_type in model.agent_types}
        return _reject(
            snapshot,
            request,
            Cause.UNKNOWN_AGENT_TYPE,
            f"no model serves the agent type {request.agent_type!r}; known are {listed(known)}: name one "
            "of them, or register a model for it by POST /v1/gpu/models",
        )
    largest = choice.largest
    if largest is not None and choice.contexts_known and largest.context_tokens < request.min_context_tokens:
        return _reject(
            snapshot,
            request,
            Cause.CONTEXT_TOO_SMALL,
            f"min_context_tokens {request.min_context_tokens} is more than any model that may serve this has "
            f"(the largest is {largest.name} with {largest.context_tokens}); ask for less, or register a "
            "model with a larger context",
        )
    return None


def _reject(snapshot: Snapshot, request: Request, cause: Cause, reason: str) -> Decision:
    left_out = dict.fromkeys(
        (model.name for model in snapshot.models.values()), serving(snapshot, request).others
    )
    if cause is Cause.CONTEXT_TOO_SMALL:
        for model in serving(snapshot, request).all:
            left_out[model.name] = LeftOut(cause, f"its context is {model.context_tokens} tokens")
    return Decision(Action.REJECT, cause, reason, left_out=left_out)


def _filter(snapshot: Snapshot, request: Request, choice: Serving) -> _Outcome:
    left_out = dict.fromkeys((model.name for model in snapshot.models.values()), choice.others)
    candidates: list[ModelRoom] = []
    for fell_back, models in ((False, choice.first), (True, choice.second)):
        for model in models:
            room = room_of(model, snapshot)
            found = obstacle(room, request, snapshot)
            if found is None:
                candidates.append(room)
                del left_out[model.name]
            else:
                left_out[model.name] = _with_unprobed(model, found)
        if candidates:
            return _Outcome(_known_first(candidates, left_out), left_out, fell_back)
    return _Outcome([], left_out, False)


def _with_unprobed(model: Model, found: LeftOut) -> LeftOut:
    return replace(found, reason=f"{found.reason}; {unprobed_words(model)}") if model.unprobed else found


def _known_first(candidates: list[ModelRoom], left_out: dict[str, LeftOut]) -> list[ModelRoom]:
    """The candidates that a monitor looks at, else all.

    One that nobody probes may serve all the same (its monitor is gone, or there is none), so it is tried
    rather than let a request wait. But it may as well be a server that is not there, or on a card whose
    levels nobody reads: it never competes with one that is known to answer.
    """
    known = [room for room in candidates if not room.model.unprobed]
    if not known:
        return candidates
    for room in candidates:
        if room.model.unprobed:
            reason = f"{unprobed_words(room.model)}; it is taken only where no model that is probed can be"
            left_out[room.model.name] = LeftOut(Cause.UNPROBED, reason)
    return known


def _dispatch(request: Request, choice: Serving, outcome: _Outcome) -> Decision:
    parts = score(outcome.candidates, request)
    chosen = pick(outcome.candidates, parts)
    reason = dispatch_reason(chosen, parts)
    if outcome.fell_back:
        asked = _nearest(choice.first, outcome)
        reason = (
            f"{asked.name} was asked for and waits: {outcome.left_out[asked.name].reason}; meanwhile {reason}"
        )
    return Decision(
        Action.DISPATCH,
        Choice.FALLBACK if outcome.fell_back else Choice.CHOSEN,
        reason,
        model=chosen.model,
        estimated_duration_ms=duration_ms(chosen.model, request),
        limit=chosen.claim_limit,
        gpu_limits={gpu.gpu.id: gpu.limit for gpu in chosen.gpus},
        parts=parts,
        left_out=outcome.left_out,
    )


def _hold(snapshot: Snapshot, choice: Serving, outcome: _Outcome) -> Decision:
    hopeful, others = (
        [model for model in models if outcome.left_out[model.name].code != Cause.CONTEXT_TOO_SMALL]
        for models in (choice.first, choice.second)
    )
    # What nobody probes may never serve: it is no reason to wait while others could take the request.
    models = _probed(hopeful) or _probed(others) or hopeful or others or choice.all
    nearest = _nearest(models, outcome)
    plan, would = None, ""
    if outcome.left_out[nearest.name].code == Cause.NOT_RESIDENT:
        nearest, plan, would = _loadable(snapshot, nearest, models, outcome)
    cause = outcome.left_out[nearest.name]
    return Decision(
        Action.HOLD,
        cause.code,
        f"{nearest.name} waits: {cause.reason}{would}{_others(nearest, choice, outcome)}",
        left_out=outcome.left_out,
        retry_in_ms=_retry_ms(choice, outcome),
        plan=plan,
    )


def _probed(models: Sequence[Model]) -> list[Model]:
    return [model for model in models if not model.unprobed]


def _loadable(
    snapshot: Snapshot, nearest: Model, models: Iterable[Model], outcome: _Outcome
) -> tuple[Model, Plan | None, str]:
    """The absent model that is loaded at least cost, and in which words; the nearest if none can be."""
    absent = [model for model in models if outcome.left_out[model.name].code == Cause.NOT_RESIDENT]
    if any(model.residence is Residence.LOADING for model in absent):
        return nearest, None, ""
    found = {model.name: plan_for(snapshot, model.name) for model in absent}
    plans = [plan for plan in found.values() if isinstance(plan, Plan)]
    if not plans:
        refusal = found[nearest.name]
        if isinstance(refusal, Obstacle) and nearest.residence in _ABSENT:
            return nearest, None, f"; it can't be loaded now: {refusal.reason}"
        return nearest, None, ""
    best = min(plans, key=lambda plan: (len(plan.victims), plan.load_seconds, plan.model))
    return snapshot.models[best.model], best, f"; it would be {plan_words(best)}, {NOT_CARRIED_OUT}"


def _nearest(models: Iterable[Model], outcome: _Outcome) -> Model:
    """The model whose obstacle passes soonest: by kind, loading before other absence, by time, by name."""

    def nearness(model: Model) -> tuple[int, bool, float, str]:
        code = outcome.left_out[model.name].code
        return _NEARNESS[code], model.residence is not Residence.LOADING, _pause_ms(model), model.name

    return min(models, key=nearness)


def _others(nearest: Model, choice: Serving, outcome: _Outcome) -> str:
    """What keeps the other models that could serve the request, by code."""
    rest = sorted(model.name for model in choice.all if model.name != nearest.name)
    if not rest:
        return ""
    shown = ", ".join(f"{name} ({outcome.left_out[name].code})" for name in rest[:_MOST_OTHERS])
    more = f" and {len(rest) - _MOST_OTHERS} more" if len(rest) > _MOST_OTHERS else ""
    return f"; also kept back: {shown}{more}"


def _retry_ms(choice: Serving, outcome: _Outcome) -> float | None:
    """When the first model that rests may be asked again; None if none is kept back by that."""
    pauses = (_pause_ms(model) for model in choice.all if outcome.left_out[model.name].code in _PAUSES)
    return min((pause for pause in pauses if pause > 0), default=None)


def _pause_ms(model: Model) -> float:
    """How long the model has to be left alone, as far as its breaker or backend told."""
    rests = (model.breaker_open_for_ms, model.saturated_for_ms, model.name_unknown_for_ms)
    return max(0.0, *(finite(rest) or 0.0 for rest in rests))
