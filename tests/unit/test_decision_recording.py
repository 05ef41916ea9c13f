"""A decision can be made again from what was written down with it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from shared.decision.recording import MOST_MODELS, record, replay
from shared.decision.routing import decide
from shared.decision.snapshot import Request, Snapshot
from tests.unit.strategies import PLAIN, named, plain_requests, snapshots


@given(seen=snapshots(), request=plain_requests())
def test_a_recorded_decision_is_made_again_the_same(seen: Snapshot, request: Request) -> None:
    inputs = record(seen, request)

    assert inputs is not None
    again, asked = replay(inputs)
    assert asked == request
    assert decide(again, asked) == decide(replace(seen, backlogs=()), request)


def test_a_large_fleet_is_not_written_down_with_each_decision() -> None:
    models = {f"m{number}": named(PLAIN, f"m{number}") for number in range(MOST_MODELS + 1)}

    assert record(Snapshot(models, {}), Request()) is None
