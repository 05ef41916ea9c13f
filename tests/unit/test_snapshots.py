"""The core's picture of the fleet: where models are, before and after their first probe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.config import Settings
from shared.registry import Registration
from shared.snapshots import snapshot_of
from shared.store.records import GpuView, ModelView, View

TWO_CARDS = ("host/0", "host/1")


def _view(entry: Registration, fields: dict[str, str], gpus: tuple[str, ...]) -> View:
    cards = tuple(GpuView(gpu, {}, {"pressure": "critical", "seq": "1"}, 0) for gpu in gpus)
    return View(now_ms=1_000, targets=(), models=(ModelView(entry, fields),), gpus=cards)


@pytest.mark.parametrize(
    ("host", "fields", "gpus", "placed"),
    [
        (None, {}, ("host/0",), ("host/0",)),
        (None, {}, TWO_CARDS, TWO_CARDS),  # not probed yet: it may be on either
        ("elsewhere", {}, TWO_CARDS, ()),
        (None, {"probe_ms": "900", "gpu": "host/1"}, TWO_CARDS, ("host/1",)),
        (None, {"probe_ms": "900", "gpu": "host/0,host/1"}, TWO_CARDS, TWO_CARDS),
        (None, {"probe_ms": "900"}, TWO_CARDS, ()),  # its monitor says: not on a card of ours, or unknown
        (None, {"probe_ms": "900", "gpu": "gone/7"}, TWO_CARDS, ()),
    ],
)
def test_a_model_is_where_its_monitor_saw_it_and_until_then_wherever_it_may_be(
    host: str | None, fields: dict[str, str], gpus: tuple[str, ...], placed: tuple[str, ...]
) -> None:
    entry = Registration(name="m", port=8080, host=host)

    seen = snapshot_of(_view(entry, fields, gpus), Settings())

    assert seen.models["m"].gpus == placed


@pytest.mark.parametrize(
    ("fields", "unprobed", "since_ms"),
    [
        ({"registered_ms": "95000"}, False, None),  # a moment ago: its first probe is under way
        ({"registered_ms": "80000"}, True, 20_000),
        ({}, True, None),  # written by hand: nobody knows since when
        ({"registered_ms": "10000", "probe_ms": "99500"}, False, None),
        ({"registered_ms": "10000", "probe_ms": "58000"}, True, 42_000),  # its monitor is gone
        ({"registered_ms": "95000", "probe_ms": "58000"}, False, None),  # registered anew since
    ],
)
def test_a_model_that_no_monitor_looks_at_says_since_when(
    fields: dict[str, str], unprobed: bool, since_ms: float | None
) -> None:
    entry = Registration(name="m", port=8080, host="gone")

    seen = snapshot_of(replace(_view(entry, fields, TWO_CARDS), now_ms=100_000), Settings())

    model = seen.models["m"]
    assert (model.unprobed, model.unprobed_ms, model.host) == (unprobed, since_ms, "gone")


def test_a_level_says_how_old_it_is_when_its_sample_is_gone() -> None:
    card = GpuView("host/0", {}, {"pressure": "critical", "read_ms": "58000"}, 0)

    seen = snapshot_of(View(now_ms=100_000, targets=(), models=(), gpus=(card,)), Settings())

    assert (seen.gpus["host/0"].sample_age_ms, seen.gpus["host/0"].level_age_ms) == (None, 42_000)
