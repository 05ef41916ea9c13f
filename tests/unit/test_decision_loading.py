"""Plans to load a model: where it fits, what has to go for it, and why it can't be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.decision.footprint import load_seconds, needs_mb, worth
from shared.decision.loading import plan_for
from shared.decision.placement import occupancy
from shared.decision.routing import decide
from shared.decision.snapshot import Backlog, Gpu, Model, Obstacle, Plan, Request, Snapshot
from shared.states import Action, BackendType, Pressure, Residence, Thermal
from tests.unit.loading_kit import away, card, idle
from tests.unit.strategies import MB, snapshot


def planned(seen: Snapshot, name: str = "z") -> Plan:
    found = plan_for(seen, name)
    assert isinstance(found, Plan), found
    return found


def refused(seen: Snapshot, name: str = "z") -> Obstacle:
    found = plan_for(seen, name)
    assert isinstance(found, Obstacle), found
    return found


def victims(plan: Plan) -> list[str]:
    return [victim.model for victim in plan.victims]


def test_memory_is_ours_foreign_and_free() -> None:
    place = occupancy(snapshot(idle("a", 6.0), idle("b", 4.0), gpus=(card(13.0),)), "host/0")
    assert (place.committed_mb, place.foreign_mb) == (10 * MB, 3 * MB)
    assert place.available_mb == 8 * MB


def test_what_has_been_measured_counts_before_what_was_declared() -> None:
    measured = idle("a", 6.0, footprint_mb=7 * MB, footprint_error_mb=500.0)
    assert needs_mb(measured) == 7 * MB + 500
    assert needs_mb(replace(measured, footprint_mb=5 * MB)) == 6 * MB + 500
    assert needs_mb(idle("a", 6.0)) == 6 * MB + 300
    place = occupancy(snapshot(measured, gpus=(card(13.0),)), "host/0")
    assert place.foreign_mb == 6 * MB


def test_a_card_can_have_a_reserve_of_its_own() -> None:
    place = occupancy(snapshot(gpus=(card(4.0, reserve_gb=1.0),)), "host/0")
    assert place.available_mb == 19 * MB


def test_a_model_that_is_still_coming_is_counted_whole() -> None:
    coming = idle("a", 10.0, residence=Residence.LOADING)
    place = occupancy(snapshot(coming, gpus=(card(2.0),)), "host/0")
    assert (place.committed_mb, place.foreign_mb, place.available_mb) == (10 * MB, 2 * MB, 9 * MB)


@pytest.mark.parametrize(
    ("model", "seconds"),
    [
        (idle("a", 6.0), 5.0),
        (idle("a", 6.0, backend=BackendType.VLLM), 63.0),
        (away("a", 6.0, backend=BackendType.VLLM), 63.0),
        (replace(away("a", 6.0), residence=Residence.SLEEPING), 4.0),
        (idle("a", 6.0, load_seconds=11.0), 11.0),
    ],
)
def test_load_times_are_learned_or_go_by_backend_and_size(model: Model, seconds: float) -> None:
    assert load_seconds(model) == seconds


def test_a_model_that_fits_is_loaded_without_unloading_anything() -> None:
    plan = planned(snapshot(idle("a", 6.0), away("z", 6.5), gpus=(card(7.0),)))
    assert (plan.gpu, plan.victims, plan.wakes) == ("host/0", (), False)
    assert plan.needs_mb == 6.5 * MB + 300
    assert plan.utilization == pytest.approx((7 + 6.5 + 300 / MB) / 24)


def test_a_sleeper_is_woken() -> None:
    plan = planned(snapshot(replace(away("z", 6.5), residence=Residence.SLEEPING), gpus=(card(7.0),)))
    assert plan.wakes


def test_the_idle_model_that_is_cheapest_to_lose_goes() -> None:
    used, unused = idle("used", 6.0, rate_6h=0.1), idle("unused", 6.0, rate_6h=None)
    plan = planned(snapshot(used, unused, away("z", 6.5), gpus=(card(14.0),)))
    assert victims(plan) == ["unused"]
    assert plan.frees_mb == 6 * MB


def test_value_is_rate_times_load_time_by_size() -> None:
    assert worth(idle("a", 4.0, rate_6h=0.5, load_seconds=8.0)) == 1.0
    assert worth(idle("a", 4.0, rate_6h=None, load_seconds=8.0)) == pytest.approx(2 / 21_600)


def test_no_more_models_go_than_must() -> None:
    small, big = idle("a", 1.0, rate_6h=None), idle("big", 12.0, rate_6h=0.001)
    plan = planned(snapshot(small, big, away("z", 10.0), gpus=(card(14.0),)))
    assert victims(plan) == ["big"]


@pytest.mark.parametrize(
    "change",
    [
        {"in_flight": 1},
        {"backend_running": 1},
        {"backend_running": 0, "backend_waiting": 1},
        {"backend_running": None},
    ],
)
def test_a_model_that_is_not_known_to_be_idle_stays(change: dict[str, int | None]) -> None:
    found = refused(snapshot(idle("a", 12.0, **change), away("z", 10.0), gpus=(card(13.0),)))
    assert found.code == "victims_busy"
    assert "in use, wanted or of unknown use (a)" in found.reason


def test_when_all_is_pinned_it_says_so() -> None:
    found = refused(snapshot(idle("a", 12.0, pin=True), away("z", 10.0), gpus=(card(13.0),)))
    assert (found.code, "is pinned (a); unpinning one would make room" in found.reason) == (
        "all_pinned",
        True,
    )


def test_a_model_larger_than_what_others_leave_never_fits() -> None:
    found = refused(snapshot(idle("a", 4.0), away("z", 14.0), gpus=(card(12.0),)))
    assert found.code == "too_large"
    assert (
        "needs 14.3 GB and GPU host/0 has 24.0 GB, of which others hold 8.0 GB and 3.0 GB stay"
        in found.reason
    )


def test_a_load_never_brings_the_card_past_its_bound() -> None:
    """0.82 of the card, also where the reserve would allow more."""
    seen = snapshot(away("z", 10.0), gpus=(card(9.0, reserve_gb=0.0),))
    assert planned(seen).utilization < 0.82
    assert refused(snapshot(away("z", 10.5), gpus=(card(9.0, reserve_gb=0.0),))).code == "too_large"


def test_the_reserve_of_a_card_stays_free() -> None:
    """Also where the card would be far from its bound."""
    assert refused(snapshot(away("z", 9.0), gpus=(card(7.0, reserve_gb=8.0),))).code == "too_large"
    assert planned(snapshot(away("z", 8.5), gpus=(card(7.0, reserve_gb=8.0),))).utilization < 0.7


def test_a_vllm_pool_is_a_partition_and_no_pressure() -> None:
    plan = planned(snapshot(away("z", 18.0, backend=BackendType.VLLM), gpus=(card(1.0),)))
    assert plan.utilization < 0.2


def test_large_models_wait_for_lower_pressure_or_end_it_themselves() -> None:
    foreign = snapshot(away("z", 16.0), gpus=(card(36.0, 48.0, reserve_gb=0.0, pressure=Pressure.HIGH),))
    assert refused(foreign).code == "too_large"
    roomy = card(20.0, 48.0, pressure=Pressure.HIGH)  # still high by hysteresis
    assert refused(snapshot(away("z", 15.5), gpus=(roomy,))).code == "large_under_pressure"
    assert isinstance(plan_for(snapshot(away("z", 12.0), gpus=(roomy,)), "z"), Plan)
    swap = snapshot(idle("a", 18.0), away("z", 15.5), gpus=(card(19.0),))
    assert swap.gpus["host/0"].pressure is Pressure.HIGH
    assert victims(planned(swap)) == ["a"]


def test_at_critical_pressure_only_evictions_that_end_it_make_a_plan() -> None:
    held = card(15.0, pressure=Pressure.CRITICAL)
    assert refused(snapshot(away("z", 2.0), gpus=(held,))).code == "memory_critical"
    assert victims(planned(snapshot(idle("a", 6.0), away("z", 2.0), gpus=(card(21.0),)))) == ["a"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sample_age_ms": 3001.0}, "stale_reading"),
        ({"sample_age_ms": None}, "memory_unknown"),
        ({"memory_used_mb": None}, "memory_unknown"),
        ({"memory_total_mb": None}, "memory_unknown"),
        ({"pressure": Pressure.UNKNOWN}, "stale_reading"),
        ({"thermal": Thermal.CRITICAL}, "heat_critical"),
    ],
)
def test_nothing_is_loaded_on_what_is_not_known_now(change: dict[str, Any], code: str) -> None:
    assert refused(snapshot(away("z", 2.0), gpus=(card(4.0, **change),))).code == code


@pytest.mark.parametrize("state", [Residence.LOADING, Residence.UNLOADING, Residence.DRAINING])
def test_one_load_at_a_time_on_a_card(state: Residence) -> None:
    found = refused(snapshot(idle("a", 2.0, residence=state), away("z", 2.0), gpus=(card(4.0),)))
    assert found.code == "load_in_progress"
    assert f"a is {state.value} on GPU host/0" in found.reason


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (idle("z", 2.0), "not_absent"),
        (idle("z", 2.0, residence=Residence.FAILED), "not_absent"),
        (idle("z", 2.0, residence=Residence.LOADING), "in_transition"),
        (replace(away("z", 2.0), vram_gb=None), "footprint_unknown"),
        (replace(away("z", 2.0), loadable_on=()), "no_gpu"),
        (replace(away("z", 2.0), loadable_on=("far/0",)), "memory_unknown"),
    ],
)
def test_what_can_t_be_loaded_says_why(model: Model, code: str) -> None:
    assert refused(snapshot(model, gpus=(card(4.0),))).code == code
    assert plan_for(snapshot(model), "nobody") == refused(snapshot(model), "nobody")


def test_a_model_goes_where_it_costs_least_and_then_where_most_is_free() -> None:
    wide = replace(away("z", 6.5), loadable_on=("host/0", "host/1", "host/2"))
    full, free, freer = card(20.0), card(10.0, id="host/1"), card(4.0, id="host/2")
    assert planned(snapshot(idle("a", 18.0), wide, gpus=(full, free, freer))).gpu == "host/2"
    assert planned(snapshot(idle("a", 18.0), wide, gpus=(full,))).gpu == "host/0"


def _swapped(gained: float, age_s: float, before: float | None) -> Snapshot:
    newcomer = idle("a", 12.0, loaded_ago_s=age_s, load_gain=before, load_seconds=10.0)
    seen = snapshot(newcomer, away("z", 10.0), gpus=(card(13.0),))
    return replace(seen, backlogs=(Backlog("z", 1, gained),))


def test_a_swap_is_not_undone_within_its_load_time_unless_for_three_times_the_gain() -> None:
    assert refused(_swapped(299.0, 9.0, 100.0)).code == "recent_swap"
    assert victims(planned(_swapped(300.0, 9.0, 100.0))) == ["a"]
    assert victims(planned(_swapped(1.0, 10.0, 100.0))) == ["a"]
    assert refused(_swapped(1e6, 9.0, None)).code == "recent_swap"


def test_a_model_that_more_waits_for_is_no_victim() -> None:
    seen = snapshot(idle("a", 12.0), away("z", 10.0), gpus=(card(13.0),))
    queues = (Backlog("a", 3, 10.0), Backlog("z", 1, 10.0))
    assert refused(replace(seen, backlogs=queues)).code == "victims_busy"
    assert victims(planned(replace(seen, backlogs=(Backlog("a", 1, 1.0), queues[1])))) == ["a"]


def test_a_hold_carries_the_plan_that_would_end_it() -> None:
    seen = snapshot(
        idle("a", 12.0, serves=("a",), agent_types=("Else",)), away("z", 10.0), gpus=(card(13.0),)
    )
    decision = decide(seen, Request(model="z", fallback=False))
    assert (decision.action, decision.code) == (Action.HOLD, "not_resident")
    assert decision.plan == planned(seen)
    assert decision.reason == (
        "z waits: it is unloaded; it serves once it has been loaded; it would be loaded on GPU host/0 after "
        "unloading a (frees 12.0 GB), which no launcher carries out yet"
    )


def test_a_hold_without_a_plan_says_what_is_in_the_way() -> None:
    seen = snapshot(idle("a", 12.0, pin=True), away("z", 10.0), gpus=(card(13.0),))
    decision = decide(seen, Request(model="z", fallback=False))
    assert (decision.code, decision.plan) == ("not_resident", None)
    assert "it can't be loaded now: there is no room on GPU host/0" in decision.reason


def test_a_hold_that_passes_by_itself_carries_no_plan() -> None:
    busy = idle("a", 6.0, in_flight=4)
    decision = decide(snapshot(busy, away("z", 2.0), gpus=(card(7.0),)), Request(agent_type="Chat"))
    assert (decision.code, decision.plan) == ("model_busy", None)
    coming = idle("a", 6.0, residence=Residence.LOADING)
    decision = decide(snapshot(coming, away("z", 2.0), gpus=(card(7.0),)), Request(agent_type="Chat"))
    assert (decision.code, decision.plan) == ("not_resident", None)


def test_of_several_absent_models_the_one_that_costs_least_is_planned() -> None:
    near, far = away("z", 2.0), away("b", 10.0, load_seconds=90.0)
    decision = decide(snapshot(near, far, gpus=(card(2.0),)), Request(agent_type="Chat"))
    assert decision.plan is not None
    assert decision.plan.model == "z"
    assert decision.reason.startswith("z waits: ")


def test_a_gpu_nobody_reads_makes_no_plan() -> None:
    assert refused(replace(snapshot(away("z", 2.0)), gpus={"host/0": Gpu("host/0")})).code == "memory_unknown"
