"""Relief of one GPU: what to unload or move when it is hot, short of memory, or holds what nobody uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shared.decision.causes import AdviceCause, Advised
from shared.decision.demand import gain_of
from shared.decision.explain import degrees, listed
from shared.decision.footprint import held_mb, load_seconds
from shared.decision.levels import MEMORY_MARGIN, concurrency_factor, released_below
from shared.decision.load_reasons import gb
from shared.decision.loading import by_worth, is_victim, plan_for
from shared.decision.placement import Occupancy, in_transition, is_fresh, is_stale, occupancy
from shared.decision.readings import finite
from shared.decision.snapshot import Advice, Model, Plan, Snapshot
from shared.states import Pressure, Residence


def relieved(snapshot: Snapshot, gpu_id: str) -> tuple[Advice, ...]:
    """What one GPU should be rid of: for heat all but one model, for memory the cheapest, and the long idle.

    Only models that are known to be idle, not pinned, and not waited for.
    """
    place = occupancy(snapshot, gpu_id)
    if in_transition(place.models) is not None:
        return ()
    leaving = by_worth(
        [
            model
            for model in place.models
            if is_victim(model) and model.name not in snapshot.busy and gain_of(snapshot, model) <= 0
        ]
    )
    if concurrency_factor(place.gpu.thermal) <= 0:
        # The gate stays shut on the last level; to unload on it takes a reading of now.
        return () if is_stale(place.gpu) else _reduced(place, leaving)
    short = _given_way(snapshot, place, leaving)
    named = {one.model for one in short}
    return (
        *short,
        *(_outstayed(place, model) for model in leaving if _is_long_idle(model) and model.name not in named),
    )


def _reduced(place: Occupancy, leaving: Sequence[Model]) -> tuple[Advice, ...]:
    awake = [model for model in place.models if model.residence is Residence.RESIDENT]
    if len(awake) < 2:
        return ()
    keep = max(
        awake,
        key=lambda model: (
            model not in leaving,
            finite(model.rate_10min) or 0.0,
            -(held_mb(model) or 0.0),
            model.name,
        ),
    )
    gone = [model for model in leaving if model is not keep]
    if not gone:
        return ()
    others = [model.name for model in awake if model is not keep and model not in gone]
    more = f"; {listed(others)} would follow once idle, not pinned and not waited for" if others else ""
    return (
        Advice(
            Advised.REDUCE,
            AdviceCause.HEAT_CRITICAL,
            f"GPU {place.gpu.id} is at critical heat ({degrees(place.gpu)}) with {len(awake)} "
            "resident models: keep "
            f"{keep.name}, unload {listed(model.name for model in gone)}{more}",
            f"the card would serve one model when it has cooled, and {gb(_held(gone))} would be free",
            model=keep.name,
            gpu=place.gpu.id,
            victims=tuple(model.name for model in gone),
            frees_mb=_held(gone),
            utilization=place.utilization(gone),
        ),
    )


def _given_way(snapshot: Snapshot, place: Occupancy, leaving: Sequence[Model]) -> tuple[Advice, ...]:
    """Unload, or move where there is room, until the card is clear of critical pressure.

    Our own loads stop short of that bound, so past it somebody else's memory has grown.
    """
    use = place.utilization() if is_fresh(place.gpu) else None
    if use is None:
        return ()
    bound = released_below(snapshot.rules.memory.high, MEMORY_MARGIN)
    pressed = place.gpu.pressure in (Pressure.HIGH, Pressure.CRITICAL)
    advised: list[Advice] = []
    gone: list[Model] = []
    for model in leaving:
        now = place.utilization(gone)
        if now is None:
            break
        away = _elsewhere(snapshot, place, model, now) if pressed or now > bound else None
        if now <= bound and away is None:
            break
        gone.append(model)
        after = place.utilization(gone)
        advised.append(
            _moved(place, model, away, now) if away else _unloaded(place, model, now, after, bound)
        )
        if now <= bound:
            break
    return tuple(advised)


def _elsewhere(snapshot: Snapshot, place: Occupancy, model: Model, use: float) -> Plan | None:
    """The load of the model on another GPU, without evictions, where more is free than here."""
    others = tuple(gpu for gpu in model.loadable_on if gpu != place.gpu.id)
    if not others:
        return None
    absent = replace(model, residence=Residence.UNLOADED, gpus=(), loadable_on=others)
    found = plan_for(replace(snapshot, models={**snapshot.models, model.name: absent}), model.name)
    if isinstance(found, Plan) and not found.victims and found.utilization < use:
        return found
    return None


def _unloaded(place: Occupancy, model: Model, now: float, after: float | None, bound: float) -> Advice:
    frees = held_mb(model) or 0.0
    return Advice(
        Advised.UNLOAD,
        AdviceCause.GIVE_WAY,
        f"GPU {place.gpu.id} is {100 * now:.0f} % used, more than the {100 * bound:.0f} % that our "
        "own loads keep to, and "
        f"{gb(place.foreign_mb or 0.0)} of it are not ours: {model.name} is idle and cheapest to lose",
        f"{gb(frees)} would be free"
        + ("" if after is None else f" and the card {100 * after:.0f} % used")
        + f"; {model.name} would load again in about {load_seconds(model):.0f} s",
        model=model.name,
        gpu=place.gpu.id,
        victims=(model.name,),
        frees_mb=frees,
        load_seconds=load_seconds(model),
        utilization=after,
    )


def _moved(place: Occupancy, model: Model, plan: Plan, now: float) -> Advice:
    return Advice(
        Advised.MOVE,
        AdviceCause.MORE_ROOM,
        f"GPU {place.gpu.id} is {100 * now:.0f} % used and GPU {plan.gpu} has "
        f"{gb(plan.available_mb)} free: {model.name} "
        "is idle and fits there",
        f"{gb(held_mb(model) or 0.0)} would be free on GPU {place.gpu.id}; GPU {plan.gpu} would be "
        f"{100 * plan.utilization:.0f} % used after about {plan.load_seconds:.0f} s",
        model=model.name,
        gpu=place.gpu.id,
        to_gpu=plan.gpu,
        frees_mb=held_mb(model),
        needs_mb=plan.needs_mb,
        load_seconds=plan.load_seconds,
        utilization=plan.utilization,
        plan=plan,
    )


def _is_long_idle(model: Model) -> bool:
    ttl, idle = finite(model.ttl_s), finite(model.idle_s)
    return ttl is not None and idle is not None and idle > ttl


def _outstayed(place: Occupancy, model: Model) -> Advice:
    frees = held_mb(model) or 0.0
    return Advice(
        Advised.UNLOAD,
        AdviceCause.TTL,
        f"{model.name} is idle for {model.idle_s or 0:.0f} s, longer than its ttl_s of "
        f"{model.ttl_s or 0:.0f} s",
        f"{gb(frees)} would be free on GPU {place.gpu.id}; it would load again in about "
        f"{load_seconds(model):.0f} s",
        model=model.name,
        gpu=place.gpu.id,
        victims=(model.name,),
        frees_mb=frees,
        load_seconds=load_seconds(model),
        utilization=place.utilization((model,)),
    )


def _held(models: Sequence[Model]) -> float:
    return sum(held_mb(model) or 0.0 for model in models)
