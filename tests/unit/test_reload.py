"""What a changed file changes in a running process, and what waits for a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from services.cli import reference
from shared.config import Settings, parse
from shared.reload import BUILT_IN, NO_SIMULATOR, OTHER_SOURCE, RESTART, LiveSettings, compare, takes_effect

ONE = {"name": "one", "port": 9001, "slots": 2}
MADE_UP = {"name": "made-up", "port": 9009, "simulated": True}
TWO = {"name": "two", "url": "http://10.0.0.2:8000"}


def settings(**sections: Any) -> Settings:
    return parse({"models": [ONE]} | sections, "test")


def other_values() -> Mapping[str, Any]:
    """For each setting of a section a value that it does not have by default."""
    special: dict[str, Any] = {
        "redis.url": "redis://10.0.0.2/1", "redis.namespace": "other", "api.host": "::1",
        "api.allowed_hosts": ["gpubox.lan"], "api.cors_origins": ["https://chat.example.org"],
        "api.trusted_proxies": ["10.0.0.0/8"], "gpu.source": "none", "backends.host": "10.0.0.3",
        "log.level": "DEBUG", "log.format": "json", "log.dir": "elsewhere",
        "simulator.host": "0.0.0.0", "simulator.gpu_name": "Another", "jobs.priority": 6,
        "jobs.max_attempts": 4, "memory_thresholds.critical": 0.96,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, section in Settings().model_dump().items():
        if isinstance(section, dict):
            for key, value in section.items():
                found[f"{name}.{key}"] = special.get(f"{name}.{key}", _other(value))
    return found


def _other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 1.01
        case _:
            return None


OTHER = other_values()


def changed(key: str) -> Settings:
    section, _, name = key.partition(".")
    return settings(**{section: {name: OTHER[key]}})


def value(of: Settings, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(of, section), name)


def test_every_setting_that_needs_a_restart_is_one_that_exists() -> None:
    assert RESTART.keys() <= OTHER.keys()


@pytest.mark.parametrize("key", OTHER)
def test_a_setting_takes_effect_when_its_documentation_says(key: str) -> None:
    """The column of docs/configuration.md and what a running process does are compared key by key."""
    before, after = settings(), changed(key)
    assert value(before, key) != value(after, key), "the test must change it"

    change = compare(before, after)

    (row,) = [one for one in reference.settings() if f"{one.section}.{one.key}" == key]
    waits = value(change.settings, key) == value(before, key)
    assert row.effect == takes_effect(key)
    assert (row.effect == "at once") == (not waits)
    assert [one.what for one in change.restarts] == ([key] if waits else [])
    assert (change.effects == ()) == waits
    if not waits:
        assert change.effects[0].startswith(f"{key} ")
        assert change.sections == {key.partition(".")[0]}


def test_nothing_follows_from_a_file_that_says_the_same() -> None:
    change = compare(settings(), settings())
    assert (change.effects, change.restarts, change.sections) == ((), (), frozenset())


def test_each_model_that_came_changed_or_went_is_named() -> None:
    before = parse({"models": [ONE, {"name": "gone", "port": 9002}]}, "test")
    after = parse({"models": [{**ONE, "slots": 3, "port": 9003}, TWO]}, "test")

    change = compare(before, after)

    said = ("model two added", "model one changed (port, slots)", "model gone removed")
    assert change.effects == said
    assert change.settings.models == after.models
    assert change.restarts == ()


def test_a_file_without_models_takes_none_out_of_service() -> None:
    """At a start it would mean the built-in simulated ones; what else it says counts all the same."""
    change = compare(settings(), parse({"queue": {"bound": 7}}, "test"))

    assert [model.name for model in change.settings.registrations] == ["one"]
    assert [one.what for one in change.restarts] == [BUILT_IN]
    assert change.settings.queue.bound == 7
    assert change.sections == {"queue"}


def test_models_in_place_of_the_built_in_ones_are_taken() -> None:
    change = compare(Settings(), settings())
    assert [model.name for model in change.settings.registrations] == ["one"]
    assert "model one added" in change.effects
    assert "model bi-medix2 removed" in change.effects


def test_the_first_simulated_model_needs_those_restarted_that_chose_who_reads_the_gpus() -> None:
    change = compare(settings(), settings(models=[ONE, MADE_UP]))
    assert [(one.what, one.services) for one in change.restarts] == [(OTHER_SOURCE, ("simulator", "monitor"))]


@pytest.mark.parametrize(
    ("source", "said"),
    [("none", [NO_SIMULATOR]), ("nvml", [NO_SIMULATOR]), ("auto", [OTHER_SOURCE]), ("simulated", [])],
)
def test_the_first_simulated_model_is_said_to_need_a_simulator_where_none_was_started(
    source: str, said: list[str]
) -> None:
    change = compare(
        settings(gpu={"source": source}), settings(gpu={"source": source}, models=[ONE, MADE_UP])
    )
    assert [one.what for one in change.restarts] == said


@pytest.mark.parametrize("source", ["none", "auto"])
def test_simulated_models_that_come_and_go_again_need_nothing_restarted(source: str) -> None:
    """What counts is whether there were any at the start."""
    start = settings(gpu={"source": source})
    there = compare(start, settings(gpu={"source": source}, models=[ONE, MADE_UP]), simulated=False).settings
    assert compare(there, start, simulated=False).restarts == ()
    assert len(compare(there, there, simulated=False).restarts) == 1, "it still waits at the next change"


def test_what_differs_for_a_card_takes_effect() -> None:
    change = compare(settings(), settings(gpus=[{"id": 0, "reserve_gb": 1.0}]))
    assert change.effects == ("gpus",)
    assert change.settings.gpus[0].reserve_gb == 1.0


def test_a_change_that_waits_is_not_lost_by_the_next_one() -> None:
    """The port waits; a later change of the bound is compared with what counts, so the port still waits."""
    first = compare(settings(), settings(api={"port": 9100}))
    second = compare(first.settings, settings(api={"port": 9100}, queue={"bound": 5}))
    assert [one.what for one in second.restarts] == ["api.port"]
    assert second.settings.api.port == Settings().api.port
    assert second.settings.queue.bound == 5


def test_whoever_keeps_the_live_settings_sees_what_counts_now() -> None:
    live = LiveSettings.of(settings())
    kept = live
    live.take(settings(queue={"bound": 3}))
    assert kept.queue.bound == 3
    assert isinstance(kept, Settings)
    section = "queue"
    with pytest.raises(ValidationError):
        setattr(settings(), section, kept.queue)
