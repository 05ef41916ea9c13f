"""Advice: what to load, unload, move or reduce, in which order, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.decision.advice import advise
from shared.decision.snapshot import Advice, Backlog, Snapshot
from shared.states import BackendType, Pressure, Residence, Thermal
from tests.unit.loading_kit import away, card, idle
from tests.unit.strategies import MB, snapshot


def only(seen: Snapshot, *queues: Backlog) -> Advice:
    (found,) = advise(seen, queues)
    return found


def actions(seen: Snapshot, *queues: Backlog) -> list[tuple[str, str | None]]:
    return [(one.action, one.model) for one in advise(seen, queues)]


def test_where_all_is_well_there_is_nothing_to_do() -> None:
    found = only(snapshot(idle("a", 6.0), away("z", 6.0), gpus=(card(7.0),)))
    assert (found.action, found.code, found.model) == ("nothing", "all_well", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample_age_ms": 42_000.0}, "have stopped (last known 42 s ago)"),
        ({"sample_age_ms": None, "level_age_ms": 600_000.0}, "have stopped (last known 600 s ago)"),
        ({"sample_age_ms": None}, "have stopped (nobody knows since when)"),
        ({"memory_used_mb": None}, "the memory of GPU host/0 can't be read"),
        ({"pressure": Pressure.UNKNOWN, "thermal": Thermal.UNKNOWN}, "the memory and the heat of GPU host/0"),
    ],
)
def test_what_is_not_known_is_never_called_well(changes: dict[str, Any], said: str) -> None:
    found = only(snapshot(idle("a", 6.0), gpus=(card(7.0, **changes),)))

    assert (found.action, found.code, found.gpu) == ("nothing", "unknown_readings", "host/0")
    assert said in found.reason
    assert "monitor of host" in found.reason


def test_a_model_that_nobody_probes_and_a_fleet_without_a_gpu_are_not_well_either() -> None:
    ghost = idle("ghost", 6.0, unprobed=True, unprobed_ms=30_000.0, residence=Residence.UNKNOWN)
    found = only(snapshot(ghost, gpus=(card(7.0),)))
    assert (found.code, found.model) == ("unknown_readings", "ghost")
    assert "no monitor has probed it for 30 s" in found.reason
    assert only(snapshot(gpus=())).code == "unknown_readings"
    unsized = idle("a", 6.0, backend=BackendType.VLLM, vram_gb=None)
    assert "register vram_gb" in only(snapshot(unsized, gpus=(card(7.0),))).reason


def test_what_is_worth_doing_is_said_beside_what_is_not_known() -> None:
    seen = snapshot(
        idle("old", 6.0, ttl_s=60.0, idle_s=61.0),
        gpus=(card(14.0), card(2.0, id="host/1", sample_age_ms=9000.0)),
    )
    assert [(one.action, one.code, one.gpu) for one in advise(seen)] == [
        ("unload", "ttl", "host/0"),
        ("nothing", "unknown_readings", "host/1"),
    ]


def test_a_model_that_nobody_probes_serves_no_queue() -> None:
    ghost = idle("ghost", 2.0, residence=Residence.UNKNOWN, gpus=(), host="typo", unprobed=True)
    seen = snapshot(ghost, away("z", 6.0), gpus=(card(2.0),))
    assert actions(seen, Backlog("auto:Chat", 1, 8.0))[0] == ("load", "z")


def test_what_waits_for_an_absent_model_gets_it_loaded() -> None:
    seen = snapshot(idle("a", 12.0), away("z", 10.0), gpus=(card(13.0),))
    found = only(seen, Backlog("z", 3, 20.0, 5.0))
    assert (found.action, found.model, found.gpu, found.victims) == ("load", "z", "host/0", ("a",))
    assert (found.gain, found.load_seconds, found.frees_mb) == (20.0 * 2 + 15.0, 7.0, 12 * MB)
    assert found.reason == (
        "3 jobs wait for z, 55 s of waiting against about 7 s of loading: it could be loaded on GPU host/0 "
        "after unloading a (frees 12.0 GB)"
    )
    assert found.changes == "those jobs would be served in about 7 s; GPU host/0 would then be 47 % used"


def test_loads_come_by_gain_per_second_and_one_for_each_card() -> None:
    slow, fast = away("slow", 4.0, load_seconds=50.0), away("fast", 4.0, load_seconds=5.0)
    found = advise(
        snapshot(slow, fast, gpus=(card(2.0),)), (Backlog("slow", 1, 200.0), Backlog("fast", 1, 100.0))
    )
    assert [(one.action, one.model, one.code) for one in found] == [
        ("load", "fast", "backlog"),
        ("wait", "slow", "load_in_progress"),
    ]
    apart = replace(slow, loadable_on=("host/1",))
    both = snapshot(apart, fast, gpus=(card(2.0), card(2.0, id="host/1")))
    assert actions(both, Backlog("slow", 1, 200.0), Backlog("fast", 1, 100.0)) == [
        ("load", "fast"),
        ("load", "slow"),
    ]


def test_one_load_serves_a_queue_that_several_models_could() -> None:
    seen = snapshot(away("a", 4.0), away("b", 6.0), gpus=(card(2.0),))
    assert actions(seen, Backlog("auto:Chat", 2, 30.0)) == [("load", "a")]


def test_beside_a_model_that_serves_already_a_load_must_pay() -> None:
    seen = snapshot(idle("a", 6.0, in_flight=4), away("b", 6.0), gpus=(card(7.0),))
    assert actions(seen, Backlog("auto:Chat", 1, 4.0)) == [("nothing", None)]
    assert actions(seen, Backlog("auto:Chat", 1, 6.0)) == [("load", "b")]


def test_a_model_that_is_wanted_and_can_t_be_loaded_is_named_with_its_obstacle() -> None:
    seen = snapshot(idle("a", 12.0, pin=True), away("z", 10.0), gpus=(card(13.0),))
    found = only(seen, Backlog("z", 1, 8.0))
    assert (found.action, found.code, found.model) == ("wait", "all_pinned", "z")
    assert found.reason.startswith("z is wanted (1 job waits) and can't be loaded now: there is no room")


def test_idle_models_go_when_their_time_is_over() -> None:
    seen = snapshot(
        idle("old", 6.0, ttl_s=60.0, idle_s=61.0),
        idle("new", 2.0, ttl_s=60.0, idle_s=59.0),
        idle("kept", 2.0, ttl_s=60.0, idle_s=99.0, pin=True),
        idle("busy", 2.0, ttl_s=60.0, idle_s=99.0, in_flight=1),
        idle("unknown", 2.0, ttl_s=60.0),
        gpus=(card(14.0),),
    )
    found = only(seen)
    assert (found.action, found.code, found.model, found.frees_mb) == ("unload", "ttl", "old", 6 * MB)
    assert found.reason == "old is idle for 61 s, longer than its ttl_s of 60 s"


def test_before_a_card_is_critical_the_cheapest_idle_models_give_way() -> None:
    dear, cheap = idle("dear", 6.0, rate_6h=0.1), idle("cheap", 2.0, rate_6h=None)
    seen = snapshot(dear, cheap, idle("busy", 6.0, in_flight=1), gpus=(card(20.0),))
    found = only(seen)
    assert (found.action, found.code, found.model) == ("unload", "give_way", "cheap")
    assert (
        "83 % used, more than the 82 % that our own loads keep to, and 6.0 GB of it are not ours"
        in found.reason
    )
    assert "2.0 GB would be free and the card 75 % used" in found.changes
    fuller = replace(seen, gpus={"host/0": card(23.0)})
    assert actions(fuller) == [("unload", "cheap"), ("unload", "dear")]
    stale = only(replace(seen, gpus={"host/0": card(20.0, sample_age_ms=4000.0)}))
    assert (stale.action, stale.code) == ("nothing", "unknown_readings")


def test_an_idle_model_moves_to_a_card_with_more_room() -> None:
    model = idle("a", 6.0, loadable_on=("host/0", "host/1"))
    seen = snapshot(model, gpus=(card(10.0, 12.0), card(2.0, id="host/1")))
    found = only(seen)
    assert (found.action, found.model, found.gpu, found.to_gpu) == ("move", "a", "host/0", "host/1")
    assert found.reason == "GPU host/0 is 83 % used and GPU host/1 has 19.0 GB free: a is idle and fits there"
    assert actions(replace(seen, gpus={**seen.gpus, "host/1": card(23.0, id="host/1")})) == [("unload", "a")]
    bound_here = replace(model, loadable_on=("host/0",))
    assert actions(snapshot(bound_here, gpus=tuple(seen.gpus.values()))) == [("unload", "a")]


def test_at_critical_heat_a_card_is_reduced_to_the_model_most_in_use() -> None:
    hot = card(20.0, thermal=Thermal.CRITICAL, temperature_c=88.0)
    rare, often = idle("rare", 2.0, rate_10min=0.1), idle("often", 6.0, rate_10min=0.5)
    found = only(snapshot(rare, often, idle("pinned", 2.0, pin=True), gpus=(hot,)))
    assert (found.action, found.code, found.model, found.victims) == (
        "reduce_to_one_model", "heat_critical", "pinned", ("often", "rare"),
    )  # fmt: skip
    found = only(snapshot(rare, often, gpus=(hot,)))
    assert (found.model, found.victims) == ("often", ("rare",))
    assert "at critical heat (88 C) with 2 resident models: keep often, unload rare" in found.reason
    assert actions(snapshot(often, gpus=(hot,))) == [("nothing", None)]
    stale = replace(hot, sample_age_ms=None, level_age_ms=42_000.0)
    assert only(snapshot(rare, often, gpus=(stale,))).code == "unknown_readings"


def test_what_jobs_wait_for_is_not_unloaded() -> None:
    seen = snapshot(idle("a", 6.0, ttl_s=1.0, idle_s=9.0), gpus=(card(21.0),))
    assert actions(seen, Backlog("a", 1, 1.0)) == [("nothing", None)]


def test_while_a_model_comes_or_goes_its_card_is_left_alone() -> None:
    seen = snapshot(idle("a", 6.0), idle("b", 6.0, residence=Residence.UNLOADING), gpus=(card(22.0),))
    assert actions(seen) == [("nothing", None)]
