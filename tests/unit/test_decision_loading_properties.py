"""Invariants of the decision model (section 8) for loads and advice, over arbitrary fleets."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.decision.advice import advise
from shared.decision.capacity import busy
from shared.decision.causes import AdviceCause, Advised, LoadCause
from shared.decision.footprint import load_seconds, needs_mb, worth
from shared.decision.loading import plan_for
from shared.decision.placement import occupancy
from shared.decision.routing import decide
from shared.decision.snapshot import Gpu, Obstacle, Plan, Request, Snapshot
from shared.states import Action, Pressure, Residence, Thermal
from tests.unit.loading_kit import fleets
from tests.unit.strategies import PROPERTY, WILD, snapshots

THOROUGH = settings(PROPERTY, max_examples=150)
"""Plans with evictions are one in ten."""

REMEDIES = (
    "once", "when", "would make room", "register", "nothing to load", "it fits once", "judged on a fresh one",
)  # fmt: skip


def plans_of(seen: Snapshot) -> list[Plan]:
    found = [plan_for(seen, name) for name in seen.models]
    return [one for one in found if isinstance(one, Plan)]


@THOROUGH
@given(seen=fleets())
def test_never_a_load_that_exceeds_what_is_available(seen: Snapshot) -> None:
    """Invariant 1, told again by hand from the readings: what is used, less what goes, and the reserve."""
    for plan in plans_of(seen):
        gpu, needs = seen.gpus[plan.gpu], needs_mb(seen.models[plan.model])
        assert needs == plan.needs_mb <= plan.available_mb
        assert gpu.memory_total_mb is not None
        assert gpu.memory_used_mb is not None
        reserve = 1024 * (seen.rules.reserve_gb if gpu.reserve_gb is None else gpu.reserve_gb)
        left = gpu.memory_total_mb - (gpu.memory_used_mb - plan.frees_mb) - reserve
        assert plan.available_mb <= max(0.0, left) + 1e-6
        assert plan.utilization <= 0.82
        if gpu.pressure is Pressure.CRITICAL:
            assert plan.victims


@THOROUGH
@given(seen=fleets())
def test_never_an_eviction_of_busy_loading_or_pinned_models(seen: Snapshot) -> None:
    """Invariant 2, for plans and for advice."""
    gone = {victim.model for plan in plans_of(seen) for victim in plan.victims}
    advised = advise(seen)
    gone |= {name for one in advised for name in one.victims}
    gone |= {one.model for one in advised if one.action == Advised.MOVE and one.model}
    for name in gone:
        model = seen.models[name]
        assert model.residence is Residence.RESIDENT
        assert (model.pin, busy(model), model.in_flight, model.backend_running) == (False, 0, 0, 0)
        changing = (Residence.LOADING, Residence.UNLOADING, Residence.DRAINING)
        assert all(
            other.residence not in changing for other in seen.models.values() if other.gpus == model.gpus
        )


@PROPERTY
@given(seen=fleets(), data=st.data())
def test_the_same_snapshot_gives_the_same_plans_and_advice(seen: Snapshot, data: st.DataObject) -> None:
    """Invariant 3, in any order of reading."""
    shuffled = replace(
        seen,
        models={name: seen.models[name] for name in data.draw(st.permutations(list(seen.models)))},
        gpus={gpu: seen.gpus[gpu] for gpu in data.draw(st.permutations(list(seen.gpus)))},
        backlogs=tuple(data.draw(st.permutations(seen.backlogs))),
    )
    assert advise(seen) == advise(seen) == advise(shuffled)
    assert [plan_for(seen, name) for name in seen.models] == [
        plan_for(shuffled, name) for name in seen.models
    ]


@PROPERTY
@given(seen=fleets())
def test_every_obstacle_and_every_advice_names_cause_and_remedy(seen: Snapshot) -> None:
    """Invariant 8."""
    for name in (*seen.models, "nobody"):
        found = plan_for(seen, name)
        if isinstance(found, Obstacle):
            assert found.code in tuple(LoadCause)
            assert any(remedy in found.reason for remedy in REMEDIES), found.reason
    advised = advise(seen)
    assert advised
    for one in advised:
        assert one.action in tuple(Advised)
        assert one.code in {*AdviceCause, *LoadCause}
        assert one.reason
        assert one.changes
    for name in (name for name, model in seen.models.items() if model.residence is Residence.UNLOADED):
        decision = decide(seen, Request(model=name, fallback=False))
        assert (decision.action, decision.code) == (Action.HOLD, "not_resident")
        plan = plan_for(seen, name)
        assert decision.plan == (plan if isinstance(plan, Plan) else None)
        assert (
            "which no launcher carries out yet" if isinstance(plan, Plan) else plan.reason
        ) in decision.reason


@THOROUGH
@given(seen=fleets(), data=st.data())
def test_a_reading_that_is_missing_never_makes_a_plan(seen: Snapshot, data: st.DataObject) -> None:
    """Invariant 9: what could not be loaded with all readings can't be without some of them."""
    blank: dict[str, Any] = {
        "memory_used_mb": None, "memory_total_mb": None, "sample_age_ms": None, "pressure": Pressure.UNKNOWN,
    }  # fmt: skip
    gpus = {}
    for gpu_id, gpu in seen.gpus.items():
        lost = data.draw(st.frozensets(st.sampled_from(sorted(blank)), max_size=2))
        gpus[gpu_id] = replace(gpu, **{name: blank[name] for name in lost})
    blind = data.draw(st.frozensets(st.sampled_from(sorted(seen.models))))
    models = {
        name: replace(model, backend_running=None) if name in blind else model
        for name, model in seen.models.items()
    }
    unread = replace(seen, gpus=gpus, models=models)
    for name in seen.models:
        if isinstance(plan_for(unread, name), Plan):
            assert isinstance(plan_for(seen, name), Plan)
    for gpu_id in seen.gpus:
        known, less = (occupancy(one, gpu_id).available_mb for one in (seen, unread))
        assert less is None or less == known


@PROPERTY
@given(seen=fleets(), data=st.data())
def test_room_and_cooling_never_take_a_plan_away(seen: Snapshot, data: st.DataObject) -> None:
    """Invariant 4 for loads: a larger card at a lower level."""
    more = {
        gpu_id: replace(
            gpu,
            memory_total_mb=(gpu.memory_total_mb or 0.0) + data.draw(st.sampled_from((0.0, 8192.0))),
            pressure=Pressure.LOW,
            thermal=Thermal.NORMAL,
        )
        for gpu_id, gpu in seen.gpus.items()
    }
    for plan in plans_of(seen):
        assert isinstance(plan_for(replace(seen, gpus=more), plan.model), Plan)


@PROPERTY
@given(seen=snapshots(numbers=WILD), numbers=st.lists(WILD, min_size=9, max_size=9))
def test_every_number_of_plans_and_advice_is_finite(seen: Snapshot, numbers: list[float]) -> None:
    """Invariant 10, for readings that are infinite, negative or no number at all."""
    names = (
        "footprint_mb", "footprint_error_mb", "rate_6h", "rate_10min", "load_seconds", "idle_s", "ttl_s",
        "loaded_ago_s", "load_gain",
    )  # fmt: skip
    fields: dict[str, Any] = dict(zip(names, numbers, strict=True))
    models = {
        name: replace(model, **fields, loadable_on=tuple(seen.gpus), backend_running=0, gpus=model.gpus[:1])
        for name, model in seen.models.items()
    }
    gpus: dict[str, Gpu] = {gpu_id: replace(gpu, reserve_gb=numbers[0]) for gpu_id, gpu in seen.gpus.items()}
    strange = replace(seen, models=models, gpus=gpus)
    for model in models.values():
        assert math.isfinite(worth(model))
        assert 0 < load_seconds(model) < math.inf
    plans, advised = plans_of(strange), advise(strange)
    found = [asdict(plan) for plan in plans] + [asdict(one) for one in advised]
    for one in found:
        assert all(math.isfinite(value) for value in one.values() if isinstance(value, float)), one
