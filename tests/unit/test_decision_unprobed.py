"""Models that no monitor looks at: they serve where nothing better is known, and head nobody else's hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.decision.routing import decide, rank
from shared.decision.snapshot import Model, Request
from shared.states import Action, Pressure, Residence
from tests.unit.strategies import COLD, PLAIN, TINY, named, snapshot

GHOST = replace(
    named(PLAIN, "ghost"), residence=Residence.UNKNOWN, gpus=(), slots=64, host="typo", unprobed=True,
    unprobed_ms=42_000.0,
)  # fmt: skip
"""Registered for a host without a monitor: by its free slots it would beat every other one."""
BUSY = replace(PLAIN, in_flight=4)
BROKEN = replace(GHOST, breaker_open_for_ms=9000.0, failure_count=3)
ANYTHING = Request()


def test_a_model_that_nobody_probes_gives_way_to_one_that_is_known_to_answer() -> None:
    decision = decide(snapshot(GHOST, replace(PLAIN, in_flight=3)), ANYTHING)

    assert (decision.action, decision.model and decision.model.name) == (Action.DISPATCH, "plain")
    assert decision.left_out["ghost"].code == "unprobed"
    assert decision.left_out["ghost"].reason == (
        "no monitor has probed it for 42 s (start one on its host 'typo', or correct that host); it is taken "
        "only where no model that is probed can be"
    )
    assert [one.model.name for one in rank(snapshot(GHOST, PLAIN), ANYTHING)] == ["plain"]


@pytest.mark.parametrize("other", [None, BUSY])
def test_where_nothing_better_is_known_it_is_tried_and_that_is_said(other: Model | None) -> None:
    """So a server given by URL alone goes on, and so do all when the last monitor has died."""
    decision = decide(snapshot(*(model for model in (GHOST, other) if model is not None)), ANYTHING)

    assert (decision.action, decision.model) == (Action.DISPATCH, GHOST)
    assert "only load and failures count; no monitor has probed it for 42 s" in decision.reason


def test_models_that_nobody_probes_share_the_work_by_load() -> None:
    """Without any monitor (gpu.source none) all are alike."""
    one, two = (replace(named(GHOST, name), host=None, slots=4) for name in ("one", "two"))
    decision = decide(snapshot(replace(one, in_flight=1), two), ANYTHING)

    assert decision.model == two
    assert set(decision.parts) == {"one", "two"}


@pytest.mark.parametrize(
    "waiting",
    [
        BUSY,
        replace(PLAIN, residence=Residence.FAILED),
        replace(PLAIN, residence=Residence.UNLOADED, loadable_on=("host/0",)),
    ],
)
@pytest.mark.parametrize(
    "request_", [ANYTHING, Request(model="ghost", fallback=True), Request(agent_type="Chat")]
)
def test_it_heads_no_hold_of_what_another_model_could_serve(waiting: Model, request_: Request) -> None:
    decision = decide(snapshot(BROKEN, waiting), request_)

    assert decision.action is Action.HOLD
    assert decision.reason.startswith("plain waits: ")
    assert "ghost (breaker_open)" in decision.reason
    assert decision.left_out["ghost"].reason.endswith(
        "; no monitor has probed it for 42 s (start one on its host 'typo', or correct that host)"
    )


def test_alone_it_says_both_what_keeps_it_and_that_nobody_looks() -> None:
    decision = decide(snapshot(replace(BROKEN, host=None, unprobed_ms=None)), ANYTHING)

    assert (decision.action, decision.code) == (Action.HOLD, "breaker_open")
    assert "no monitor has probed it yet (start one: python -m services.monitor)" in decision.reason


def test_on_a_card_at_critical_pressure_what_is_unknown_lets_no_larger_model_serve() -> None:
    """Its monitor is gone, so all on the card is unknown: still the smallest model alone goes on."""
    tiny, plain = (replace(model, residence=Residence.UNKNOWN, unprobed=True) for model in (TINY, PLAIN))
    critical = replace(COLD, pressure=Pressure.CRITICAL, sample_age_ms=None)

    for seen in (snapshot(tiny, plain, gpus=(critical,)), snapshot(tiny, PLAIN, gpus=(critical,))):
        decision = decide(seen, ANYTHING)
        assert decision.model == tiny
        assert decision.left_out["plain"].code == "memory_critical"
