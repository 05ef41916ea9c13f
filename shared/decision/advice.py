"""What would be worth loading, unloading or moving now, with reasons; nothing of it is carried out here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shared.decision.causes import AdviceCause, Advised, LoadCause
from shared.decision.demand import gain, is_served, wanting
from shared.decision.footprint import load_seconds
from shared.decision.load_reasons import plan_words
from shared.decision.loading import plan_for
from shared.decision.relief import relieved
from shared.decision.snapshot import Advice, Backlog, Model, Plan, Snapshot
from shared.decision.unread import unread

_NOTHING = Advice(
    Advised.NOTHING,
    AdviceCause.ALL_WELL,
    "nothing waits for a model that is not loaded, no model outstayed its ttl_s, and no GPU is "
    "short of memory or too hot",
    "nothing",
)


def advise(snapshot: Snapshot, backlogs: Sequence[Backlog] | None = None) -> tuple[Advice, ...]:
    """Everything worth doing: relief of hot and full GPUs first, then loads, then what can't be done now.

    Last comes what is not known: all is well only where everything was looked at.
    Loads are ordered by gain per second of loading. Only one model is loaded on a GPU or moved there, since
    the next is judged on what this one leaves. ``backlogs`` replace those of the snapshot. The same snapshot
    gives the same advice, in whatever order its parts were read.
    """
    seen = snapshot if backlogs is None else replace(snapshot, backlogs=tuple(backlogs))
    relief = [one for gpu_id in sorted(seen.gpus) for one in relieved(seen, gpu_id)]
    moved: set[str] = set()
    kept = []
    for one in relief:
        if one.to_gpu is None or one.to_gpu not in moved:
            kept.append(one)
        if one.to_gpu is not None:
            moved.add(one.to_gpu)
    touched = moved | {one.gpu for one in kept if one.gpu is not None}
    return (*kept, *_loads(seen, touched), *unread(seen)) or (_NOTHING,)


def _loads(snapshot: Snapshot, touched: set[str]) -> list[Advice]:
    plans, blocked = _judged(snapshot)
    plans.sort(key=lambda plan: (-plan.gain / max(plan.load_seconds, 1e-3), plan.model))
    taken, covered, advised = set(touched), set[str](), []
    for plan in plans:
        model = snapshot.models[plan.model]
        targets = {one.target for one in wanting(snapshot, model)}
        if targets <= covered:
            continue
        if plan.gpu in taken:
            blocked.append(_later(plan))
        else:
            advised.append(_load(snapshot, model, plan))
            taken.add(plan.gpu)
        covered |= targets
    return advised + [one for one in blocked if not _is_covered(snapshot, one, covered)]


def _judged(snapshot: Snapshot) -> tuple[list[Plan], list[Advice]]:
    """Every absent model that something waits for: the plans that pay, and why others are none."""
    plans, blocked = [], []
    for name in sorted(snapshot.models):
        model = snapshot.models[name]
        queues = wanting(snapshot, model)
        unserved = [one for one in queues if not is_served(snapshot, one)]
        # Beside a model that serves already a load must bring more than it costs.
        if not unserved and sum(gain(one) for one in queues) <= load_seconds(model):
            continue
        found = plan_for(snapshot, name)
        if isinstance(found, Plan):
            plans.append(found)
        elif unserved and found.code not in (LoadCause.NOT_ABSENT, LoadCause.IN_TRANSITION):
            blocked.append(
                Advice(
                    Advised.WAIT,
                    found.code,
                    f"{name} is wanted ({_waiting(queues)}) and can't be loaded now: {found.reason}",
                    "nothing until then",
                    model=name,
                    gain=sum(gain(one) for one in queues),
                    load_seconds=load_seconds(model),
                )
            )
    return plans, blocked


def _load(snapshot: Snapshot, model: Model, plan: Plan) -> Advice:
    queues = wanting(snapshot, model)
    return Advice(
        Advised.LOAD,
        AdviceCause.BACKLOG,
        f"{_waiting(queues)} for {model.name}, {plan.gain:.0f} s of waiting against about "
        f"{plan.load_seconds:.0f} s "
        f"of loading: it could be {plan_words(plan)}",
        f"those jobs would be served in about {plan.load_seconds:.0f} s; GPU {plan.gpu} would then be "
        f"{100 * plan.utilization:.0f} % used",
        model=model.name,
        gpu=plan.gpu,
        victims=tuple(victim.model for victim in plan.victims),
        frees_mb=plan.frees_mb,
        needs_mb=plan.needs_mb,
        gain=plan.gain,
        load_seconds=plan.load_seconds,
        utilization=plan.utilization,
        plan=plan,
    )


def _later(plan: Plan) -> Advice:
    return Advice(
        Advised.WAIT,
        LoadCause.LOAD_IN_PROGRESS,
        f"{plan.model} is wanted too ({plan.gain:.0f} s of waiting), but what is advised for GPU "
        f"{plan.gpu} comes "
        "first; it is judged again on what that leaves",
        "nothing until then",
        model=plan.model,
        gpu=plan.gpu,
        needs_mb=plan.needs_mb,
        gain=plan.gain,
        load_seconds=plan.load_seconds,
    )


def _is_covered(snapshot: Snapshot, one: Advice, covered: set[str]) -> bool:
    """Whether another model's load serves all that a blocked one is wanted for."""
    if one.code == LoadCause.LOAD_IN_PROGRESS and one.gpu is not None:
        return False
    model = snapshot.models[one.model or ""]
    return {queue.target for queue in wanting(snapshot, model)} <= covered


def _waiting(queues: Sequence[Backlog]) -> str:
    count = sum(one.waiting for one in queues)
    return f"{count} job{'s wait' if count != 1 else ' waits'}"
