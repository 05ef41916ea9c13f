"""Whether a model could be loaded now, where, and which idle models would have to go for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.decision.capacity import busy
from shared.decision.causes import LoadCause
from shared.decision.demand import gain_of
from shared.decision.footprint import held_mb, load_seconds, needs_mb, worth
from shared.decision.levels import MEMORY_MARGIN, concurrency_factor, released_below
from shared.decision.load_reasons import blocked, large, not_absent, size, unready
from shared.decision.memory import is_large
from shared.decision.placement import Occupancy, in_transition, is_fresh, occupancy
from shared.decision.readings import finite
from shared.decision.snapshot import Model, Obstacle, Plan, Rules, Snapshot, Victim
from shared.states import Pressure, Residence

UNDO_GAIN = 3.0
"""How many times the gain of a fresh swap undoing it must bring (decision model, section 5)."""

_ABSENT = frozenset({Residence.UNLOADED, Residence.SLEEPING})
_PRESSED = frozenset({Pressure.HIGH, Pressure.CRITICAL})
_NEARNESS = {cause.value: rank for rank, cause in enumerate(LoadCause)}


@dataclass(frozen=True, slots=True)
class _Load:
    """A model to be loaded on one GPU, and by which rules."""

    model: Model
    needs_mb: float
    gain: float
    place: Occupancy
    rules: Rules

    def has_room(self, leaving: Sequence[Model]) -> bool:
        """Whether it fits once these models are gone, without making trouble of its own."""
        free = self.place.available_without(leaving)
        use = self.place.utilization(leaving, (self.model, self.needs_mb))
        return free is not None and use is not None and self.needs_mb <= free and use <= _bound(self.rules)

    def is_allowed(self, leaving: Sequence[Model]) -> bool:
        """Whether memory pressure lets it: the plan's own evictions must end what forbids it."""
        pressure = self.place.gpu.pressure
        if pressure is Pressure.CRITICAL and not leaving:
            return False
        if pressure in _PRESSED and is_large(self.model.vram_gb):
            use = self.place.utilization(leaving)
            return (
                bool(leaving)
                and use is not None
                and use < released_below(self.rules.memory.normal, MEMORY_MARGIN)
            )
        return True

    def works(self, leaving: Sequence[Model]) -> bool:
        return self.has_room(leaving) and self.is_allowed(leaving)


def plan_for(snapshot: Snapshot, model_name: str) -> Plan | Obstacle:
    """The load of a model on the GPU where it costs least, or the obstacle that passes soonest.

    Depends on nothing but its arguments. What is unknown or stale never makes a plan.
    """
    model = snapshot.models.get(model_name)
    if model is None:
        return Obstacle(LoadCause.UNKNOWN_MODEL, f"no model {model_name!r} is registered; register it first")
    if model.residence not in _ABSENT:
        return not_absent(model)
    needs = needs_mb(model)
    if needs is None:
        return Obstacle(
            LoadCause.FOOTPRINT_UNKNOWN, "how much memory it needs is unknown; register its vram_gb"
        )
    gpus = model.loadable_on or (model.gpus if len(model.gpus) == 1 else ())
    if not gpus:
        return Obstacle(
            LoadCause.NO_GPU,
            "no GPU is known that it could be loaded on; register its gpu or start a monitor there",
        )
    gained = gain_of(snapshot, model)
    tried = [
        _on(snapshot, _Load(model, needs, gained, occupancy(snapshot, gpu), snapshot.rules))
        for gpu in sorted(set(gpus))
    ]
    plans = [found for found in tried if isinstance(found, Plan)]
    if plans:
        return min(plans, key=_cost)
    return min((found for found in tried if isinstance(found, Obstacle)), key=lambda one: _NEARNESS[one.code])


def is_idle(model: Model) -> bool:
    """Whether it is known that nothing runs or waits on a model; counts that are not known are not zero."""
    return model.backend_running is not None and model.in_flight <= 0 and busy(model) == 0


def is_victim(model: Model) -> bool:
    """Whether a model may be unloaded at all: resident, idle, not pinned, of known size, on one GPU."""
    return (
        model.residence is Residence.RESIDENT
        and is_idle(model)
        and not model.pin
        and len(model.gpus) == 1
        and (held_mb(model) or 0.0) > 0
    )


def by_worth(models: Sequence[Model]) -> list[Model]:
    """The cheapest to lose first."""
    return sorted(models, key=lambda model: (worth(model), model.name))


def _bound(rules: Rules) -> float:
    return released_below(rules.memory.high, MEMORY_MARGIN)


def _cost(plan: Plan) -> tuple[float, float, str]:
    return sum(victim.value for victim in plan.victims), -plan.available_mb, plan.gpu


def _on(snapshot: Snapshot, load: _Load) -> Plan | Obstacle:
    place = load.place
    changing = in_transition(place.models)
    if changing is not None:
        return Obstacle(
            LoadCause.LOAD_IN_PROGRESS,
            f"{changing.name} is {changing.residence.value} on GPU {place.gpu.id}; it can be loaded "
            "when that is done",
        )
    if not is_fresh(place.gpu) or place.available_mb is None or place.utilization() is None:
        return unready(place, is_fresh(place.gpu))
    if concurrency_factor(place.gpu.thermal) <= 0:
        return Obstacle(
            LoadCause.HEAT_CRITICAL,
            f"GPU {place.gpu.id} is at critical heat; it can be loaded when the card has cooled",
        )
    eligible = [model for model in place.models if is_victim(model) and model.name not in snapshot.busy]
    wanted = [model for model in eligible if not _is_wanted_more(snapshot, model, load.gain)]
    free = [model for model in wanted if not _is_fresh_swap(model, load.gain)]
    leaving = _fewest(load, by_worth(free))
    return _blocked(load, wanted) if leaving is None else _plan(load, leaving)


def _fewest(load: _Load, candidates: Sequence[Model]) -> list[Model] | None:
    """The cheapest to lose, as many as it takes; None if all of them are not enough."""
    leaving: list[Model] = []
    while not load.works(leaving):
        if len(leaving) == len(candidates):
            return None
        leaving.append(candidates[len(leaving)])
    # The last was necessary. Of those before it the dearest is spared first, where it turns out needless.
    for model in reversed(leaving[:-1]):
        rest = [other for other in leaving if other is not model]
        if load.works(rest):
            leaving = rest
    return leaving


def _plan(load: _Load, leaving: Sequence[Model]) -> Plan:
    return Plan(
        model=load.model.name,
        gpu=load.place.gpu.id,
        needs_mb=load.needs_mb,
        available_mb=load.place.available_without(leaving) or 0.0,
        utilization=load.place.utilization(leaving, (load.model, load.needs_mb)) or 0.0,
        load_seconds=load_seconds(load.model),
        gain=load.gain,
        victims=tuple(Victim(model.name, held_mb(model) or 0.0, worth(model)) for model in leaving),
        wakes=load.model.residence is Residence.SLEEPING,
    )


def _is_wanted_more(snapshot: Snapshot, model: Model, gained: float) -> bool:
    own = gain_of(snapshot, model)
    return own > 0 and own >= gained


def _is_fresh_swap(model: Model, gained: float) -> bool:
    """Loaded by a plan less than its load time ago, and not outbid by far."""
    age, before = finite(model.loaded_ago_s), finite(model.load_gain)
    if age is None or age >= load_seconds(model):
        return False
    return before is None or gained <= 0 or gained < UNDO_GAIN * before


def _blocked(load: _Load, idle: Sequence[Model]) -> Obstacle:
    """Why no eviction helps, from what never passes to what passes by itself."""
    resident = [model for model in load.place.models if model.residence is Residence.RESIDENT]
    loose = [model for model in resident if not model.pin]
    gpu = load.place.gpu.id
    if not load.has_room(resident):
        return Obstacle(LoadCause.TOO_LARGE, size(load.place, load.needs_mb))
    if not load.has_room(loose):
        return blocked(LoadCause.ALL_PINNED, gpu, [model for model in resident if model.pin])
    if not load.is_allowed(loose):
        if load.place.gpu.pressure is Pressure.CRITICAL and not is_large(load.model.vram_gb):
            return blocked(LoadCause.MEMORY_CRITICAL, gpu, loose)
        return large(load.place.gpu, load.model)
    if load.works(idle):
        return blocked(
            LoadCause.RECENT_SWAP, gpu, [model for model in idle if _is_fresh_swap(model, load.gain)]
        )
    held_back = [model for model in loose if model not in idle]
    return blocked(LoadCause.VICTIMS_BUSY, gpu, held_back)
