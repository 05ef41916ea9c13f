"""The simulated GPU."""

from __future__ import annotations

import pytest

from services.simulator.card import Card
from shared.config import SimulatorSettings


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def card(clock: Clock) -> Card:
    return Card(SimulatorSettings(memory_total_gb=24.0, foreign_gb=0.5), clock)


def test_memory_is_foreign_plus_what_models_hold_plus_a_little_for_each_request(card: Card) -> None:
    empty = card.memory_used_mb
    card.occupy("a", 2048.0)
    card.occupy("b", 6144.0)
    resident = card.memory_used_mb
    card.set_running("a", 3)

    assert (empty, resident) == (512.0, 512.0 + 8192.0)
    assert resident < card.memory_used_mb < resident + 200
    card.vacate("a")
    assert card.memory_used_mb == 512.0 + 6144.0
    assert [holder.name for holder in card.holders] == ["b"]


def test_memory_never_exceeds_the_card(card: Card) -> None:
    card.occupy("huge", 100_000.0)

    assert card.memory_used_mb == card.memory_total_mb == 24 * 1024


def test_load_drives_utilisation_power_heat_and_fan_and_its_end_lets_them_fall(
    card: Card, clock: Clock
) -> None:
    idle = (card.utilization, card.power_draw_w, card.temperature_c, card.fan_percent)
    card.set_running("a", 4)
    clock.now += 60
    busy = (card.utilization, card.power_draw_w, card.temperature_c, card.fan_percent)
    card.set_running("a", 0)
    clock.now += 120

    assert all(now > before for now, before in zip(busy, idle, strict=True))
    assert busy[2] < 85
    assert card.temperature_c == pytest.approx(idle[2], abs=1.0)
    assert (card.utilization, card.power_draw_w) == idle[:2]


def test_heat_lags_behind_load(card: Card, clock: Clock) -> None:
    card.set_running("a", 4)
    at_once = card.temperature_c
    clock.now += 5
    soon = card.temperature_c
    clock.now += 60

    assert at_once < soon < card.temperature_c


def test_heat_of_a_load_that_nobody_looked_at_is_there_all_the_same(card: Card, clock: Clock) -> None:
    cool = card.temperature_c
    card.set_running("a", 4)
    clock.now += 60
    card.set_running("a", 0)

    assert card.temperature_c > cool + 20


def test_looking_often_does_not_change_the_curve(clock: Clock) -> None:
    often, once = (Card(SimulatorSettings(), clock) for _ in range(2))
    for one in (often, once):
        one.set_running("a", 2)
    for _ in range(30):
        clock.now += 0.5
        assert often.temperature_c > 0

    assert often.temperature_c == pytest.approx(once.temperature_c)


def test_speedup_makes_heat_come_faster(clock: Clock) -> None:
    slow, fast = Card(SimulatorSettings(), clock), Card(SimulatorSettings(speedup=10.0), clock)
    for one in (slow, fast):
        one.set_running("a", 4)
    clock.now += 2

    assert fast.temperature_c > slow.temperature_c + 10


def test_pinned_readings_stay_until_let_go(card: Card, clock: Clock) -> None:
    card.pins.memory_used_mb, card.pins.temperature_c = 20_000.0, 95.0
    card.occupy("a", 2048.0)
    card.set_running("a", 4)
    clock.now += 5

    assert (card.memory_used_mb, card.temperature_c, card.thermal_slowdown) == (20_000.0, 95.0, True)
    card.pins.memory_used_mb = card.pins.temperature_c = None
    assert card.memory_used_mb < 3000
    assert (card.thermal_slowdown, card.temperature_c < 80) == (False, True)
