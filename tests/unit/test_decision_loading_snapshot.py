"""What decides on loading, as it is read from one view of Redis."""

from __future__ import annotations

import math

import pytest

from shared.config import parse
from shared.decision.snapshot import Backlog, Model
from shared.registry import Registration
from shared.snapshots import snapshot_of
from shared.store.records import GpuView, Head, ModelView, TargetView, View

NOW = 1_000_000_000
CARDS = tuple(
    GpuView(gpu, {"uuid": uuid, "ts_ms": str(NOW - 50), "interval_ms": "500"}, {}, 0)
    for gpu, uuid in (("host/0", "GPU-a"), ("host/1", "GPU-b"), ("far/0", "GPU-c"))
)


def seen(
    entry: Registration,
    fields: dict[str, str] | None = None,
    *targets: TargetView,
    gpus: tuple[GpuView, ...] = CARDS,
) -> View:
    return View(NOW, targets, (ModelView(entry, fields or {}),), gpus)


def model_of(entry: Registration, **fields: str) -> Model:
    return snapshot_of(seen(entry, fields), parse({}, "test")).models[entry.name]


def waiting(target: str, count: int, *ages_s: float) -> TargetView:
    heads = tuple(Head(str(age), {"submitted_ms": str(round(NOW - 1000 * age))}) for age in ages_s)
    return TargetView(target, count, "", heads)


def test_what_was_never_measured_is_unknown() -> None:
    model = model_of(Registration(name="a", port=1))
    assert (model.rate_10min, model.rate_6h, model.idle_s, model.ttl_s) == (None, None, None, None)
    assert (model.footprint_mb, model.footprint_error_mb, model.load_seconds) == (None, None, None)
    assert (model.loaded_ago_s, model.load_gain) == (None, None)


def test_rates_go_on_fading_after_the_last_use() -> None:
    model = model_of(
        Registration(name="a", port=1, ttl_s=30),
        rate_10min="0.5",
        rate_6h="0.25",
        rate_ms=str(NOW - 600_000),
        last_used_ms=str(NOW - 5000),
        footprint_mb="7000",
        load_seconds="12.5",
        loaded_ms=str(NOW - 4000),
    )
    assert model.rate_10min == pytest.approx(0.5 / math.e)
    assert model.rate_6h == pytest.approx(0.25 * math.exp(-1 / 36))
    assert (model.idle_s, model.ttl_s, model.footprint_mb, model.load_seconds) == (5.0, 30, 7000.0, 12.5)
    assert model.loaded_ago_s == 4.0


@pytest.mark.parametrize(
    ("entry", "fields", "cards"),
    [
        (Registration(name="a", port=1), {}, ("far/0", "host/0", "host/1")),
        (Registration(name="a", port=1), {"host": "host"}, ("host/0", "host/1")),
        (Registration(name="a", port=1, host="far"), {}, ("far/0",)),
        (Registration(name="a", port=1, gpu=1), {"host": "host"}, ("host/1",)),
        (Registration(name="a", port=1, gpu="gpu-B"), {}, ("host/1",)),
        (Registration(name="a", port=1, gpu=7), {}, ()),
        (Registration(name="a", url="http://10.0.0.2:8000"), {"host": "host"}, ()),
        (Registration(name="a", url="http://10.0.0.2:8000", host="far"), {}, ("far/0",)),
    ],
)
def test_a_model_may_be_loaded_on_the_cards_of_its_host(
    entry: Registration, fields: dict[str, str], cards: tuple[str, ...]
) -> None:
    assert model_of(entry, **fields).loadable_on == cards


@pytest.mark.parametrize(
    ("named", "reserves"),
    [
        ("GPU-b", (None, 1.5, None)),
        ("far/0", (None, None, 1.5)),
        (0, (1.5, None, 1.5)),
        ("1", (None, 1.5, None)),
        ("GPU-z", (None, None, None)),
    ],
)
def test_a_reserve_goes_to_the_card_that_it_names(
    named: str | int, reserves: tuple[float | None, ...]
) -> None:
    settings = parse({"gpus": [{"id": named, "reserve_gb": 1.5}]}, "test")
    found = snapshot_of(seen(Registration(name="a", port=1)), settings).gpus
    assert tuple(found[gpu].reserve_gb for gpu in ("host/0", "host/1", "far/0")) == reserves
    assert {gpu.interval_ms for gpu in found.values()} == {500.0}


def test_a_queue_is_known_by_length_oldest_age_and_how_fast_it_drains() -> None:
    entry = Registration(name="a", port=1, slots=2, agent_types=("Chat",))
    fields = {"probe_ms": str(NOW), "residence": "resident", "avg_latency_ms": "4000"}
    view = seen(entry, fields, waiting("a", 10, 3.0, 7.0), waiting("auto:Else", 1, 2.0), waiting("auto:*", 0))
    assert snapshot_of(view, parse({}, "test")).backlogs == (
        Backlog("a", 10, 7.0, 20.0),
        Backlog("auto:Else", 1, 2.0, None),
        Backlog("auto:*", 0, None, 0.0),
    )
    unlearned = seen(entry, {**fields, "avg_latency_ms": ""}, waiting("a", 10, 3.0))
    assert snapshot_of(unlearned, parse({}, "test")).backlogs == (Backlog("a", 10, 3.0, None),)
