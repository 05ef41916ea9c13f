"""A picture of the fleet keeps up with what its process begins and ends."""

from __future__ import annotations

from shared.decision.snapshot import Model, Snapshot
from shared.placement.picture import Picture
from shared.states import BackendType
from shared.store.records import View


def _picture(**in_flight: int) -> Picture:
    models = {
        name: Model(name, BackendType.VLLM, "http://127.0.0.1:1", None, name, (name,), in_flight=count)
        for name, count in in_flight.items()
    }
    return Picture(View(0, (), (), ()), Snapshot(models, {}), 0.0)


def _in_flight(picture: Picture) -> dict[str, int]:
    return {name: model.in_flight for name, model in picture.snapshot.models.items()}


def test_what_begins_and_ends_is_counted_by_model() -> None:
    picture = _picture(alpha=2, beta=0)
    for model, change in (("alpha", 1), ("alpha", 1), ("beta", 1), ("alpha", -1), ("gone", 1)):
        picture.count(model, change)

    assert _in_flight(picture) == {"alpha": 3, "beta": 1}


def test_the_same_fleet_is_the_same_snapshot() -> None:
    picture = _picture(alpha=2)
    before = picture.snapshot
    picture.count("alpha", 1)
    more = picture.snapshot
    picture.count("alpha", -1)

    assert picture.snapshot is before
    picture.count("alpha", 1)
    assert picture.snapshot is more


def test_there_are_never_fewer_than_none() -> None:
    picture = _picture(alpha=1)
    for _ in range(3):
        picture.count("alpha", -1)
    assert _in_flight(picture) == {"alpha": 0}

    picture.count("alpha", 1)
    assert _in_flight(picture) == {"alpha": 1}
