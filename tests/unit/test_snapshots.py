"""The core's picture of the fleet: where models are, before and after their first probe."""

from __future__ import annotations

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
