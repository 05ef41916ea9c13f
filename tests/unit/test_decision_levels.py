"""Memory pressure and heat levels: bounds, hysteresis, unknown readings, storage."""

from __future__ import annotations

import pytest

from shared.config import MemoryThresholds, ThermalThresholds
from shared.decision.levels import LevelState, concurrency_factor, next_levels, released_below
from shared.states import Pressure, Thermal
from tests.unit.strategies import after, read


def memory_after(*shares: float | None) -> tuple[Pressure, bool]:
    state = after(*((share, None) for share in shares))
    return state.pressure, state.full


def heat_after(*degrees: float | None) -> Thermal:
    return after(*((None, degree) for degree in degrees)).thermal


@pytest.mark.parametrize(
    ("share", "pressure", "full"),
    [
        (0.0, Pressure.LOW, False),
        (0.4999, Pressure.LOW, False),
        (0.50, Pressure.NORMAL, False),
        (0.5025, Pressure.NORMAL, False),  # the specification's 12.06 of 24.0 GB
        (0.6999, Pressure.NORMAL, False),
        (0.70, Pressure.HIGH, False),
        (0.8499, Pressure.HIGH, False),
        (0.85, Pressure.CRITICAL, False),
        (0.9499, Pressure.CRITICAL, False),
        (0.95, Pressure.CRITICAL, True),
        (1.0, Pressure.CRITICAL, True),
    ],
)
def test_the_first_memory_reading_sets_the_level_at_once(
    share: float, pressure: Pressure, full: bool
) -> None:
    assert memory_after(share) == (pressure, full)


@pytest.mark.parametrize(
    ("degrees", "thermal"),
    [
        (20.0, Thermal.NORMAL),
        (64.9, Thermal.NORMAL),
        (65.0, Thermal.WARNING),
        (80.0, Thermal.WARNING),
        (80.1, Thermal.THROTTLING),
        (85.0, Thermal.THROTTLING),
        (85.1, Thermal.CRITICAL),
    ],
)
def test_the_first_temperature_sets_the_heat_level_at_once(degrees: float, thermal: Thermal) -> None:
    assert heat_after(degrees) is thermal


def test_a_gpu_that_was_never_read_is_unknown() -> None:
    assert after((None, None)) == LevelState(Pressure.UNKNOWN, False, Thermal.UNKNOWN)


def test_levels_rise_at_once_over_several_steps() -> None:
    assert after((0.2, 40.0), (0.96, 90.0)) == after((0.96, 90.0))
    assert memory_after(0.2, 0.96) == (Pressure.CRITICAL, True)
    assert heat_after(40.0, 90.0) is Thermal.CRITICAL


@pytest.mark.parametrize(
    ("shares", "pressure", "full"),
    [
        ((0.86, 0.81), Pressure.CRITICAL, False),  # one sample is not enough
        ((0.86, 0.81, 0.81), Pressure.HIGH, False),
        ((0.86, 0.82, 0.82, 0.82), Pressure.CRITICAL, False),  # not below 0.82: inside the margin
        ((0.86, 0.8199, 0.8199), Pressure.HIGH, False),
        ((0.86, 0.81, 0.83, 0.81), Pressure.CRITICAL, False),  # not consecutive
        ((0.96, 0.93, 0.93), Pressure.CRITICAL, True),
        ((0.96, 0.91, 0.91), Pressure.CRITICAL, False),
        ((0.96, 0.10, 0.10), Pressure.LOW, False),  # several levels at once
        ((0.96, 0.48, 0.48), Pressure.NORMAL, False),  # only as far as the margin allows
        ((0.86, 0.10, 0.60), Pressure.NORMAL, False),  # the worse of the two samples
        ((0.86, 0.60, 0.10), Pressure.NORMAL, False),
        ((0.86, 0.60, 0.10, 0.10), Pressure.LOW, False),
        ((0.71, 0.66, 0.66), Pressure.NORMAL, False),
        ((0.51, 0.46, 0.46), Pressure.LOW, False),
    ],
)
def test_memory_falls_only_after_two_samples_below_the_margin(
    shares: tuple[float, ...], pressure: Pressure, full: bool
) -> None:
    assert memory_after(*shares) == (pressure, full)


@pytest.mark.parametrize(
    ("degrees", "thermal"),
    [
        ((86.0, 82.0), Thermal.CRITICAL),
        ((86.0, 82.0, 82.0), Thermal.THROTTLING),
        ((86.0, 82.1, 82.1), Thermal.CRITICAL),
        ((81.0, 77.0, 77.0), Thermal.WARNING),
        ((81.0, 77.1, 77.1), Thermal.THROTTLING),
        ((66.0, 61.9, 61.9), Thermal.NORMAL),
        ((66.0, 62.0, 62.0), Thermal.WARNING),
        ((90.0, 40.0, 40.0), Thermal.NORMAL),
    ],
)
def test_heat_falls_only_after_two_samples_below_the_margin(
    degrees: tuple[float, ...], thermal: Thermal
) -> None:
    assert heat_after(*degrees) is thermal


@pytest.mark.parametrize("unread", [None, float("nan"), float("inf")])
def test_an_unknown_reading_leaves_the_level_and_is_no_step_of_the_hysteresis(unread: float | None) -> None:
    assert memory_after(0.9, unread, unread) == (Pressure.CRITICAL, False)
    assert memory_after(0.9, 0.1, unread) == (Pressure.CRITICAL, False)
    assert memory_after(0.9, 0.1, unread, 0.1) == (Pressure.LOW, False)
    assert heat_after(90.0, unread, unread) is Thermal.CRITICAL
    assert heat_after(90.0, 40.0, unread) is Thermal.CRITICAL
    assert heat_after(90.0, 40.0, unread, 40.0) is Thermal.NORMAL


def test_a_late_sample_changes_nothing() -> None:
    state = after((0.9, 90.0), (0.1, 40.0))
    assert read(state, 0.1, 40.0, fresh=False) == state
    assert read(state, 0.99, 99.0, slowdown=True, fresh=False) == state


def test_memory_and_heat_count_their_samples_apart() -> None:
    assert after((0.9, 90.0), (0.1, 90.0), (0.1, 40.0)).pressure is Pressure.LOW
    assert after((0.9, 90.0), (0.1, 90.0), (0.1, 40.0)).thermal is Thermal.CRITICAL


@pytest.mark.parametrize(
    ("degrees", "thermal"),
    [
        (50.0, Thermal.THROTTLING),
        (84.0, Thermal.THROTTLING),
        (90.0, Thermal.CRITICAL),
        (None, Thermal.THROTTLING),
    ],
)
def test_a_slowdown_flag_means_throttling_at_least(degrees: float | None, thermal: Thermal) -> None:
    assert read(LevelState(), None, degrees, slowdown=True).thermal is thermal


def test_a_slowdown_flag_without_temperature_never_cools_a_critical_card() -> None:
    state = heat_critical = after((None, 90.0))
    for _ in range(5):
        state = read(state, slowdown=True)
    assert state.thermal is heat_critical.thermal is Thermal.CRITICAL


def test_throttling_ends_two_cool_samples_after_the_flag_went() -> None:
    state = read(LevelState(), None, 60.0, slowdown=True)
    state = read(state, None, 60.0)
    assert state.thermal is Thermal.THROTTLING
    state = read(state, slowdown=True)  # the flag came back between the two cool samples
    state = read(state, None, 60.0)
    assert state.thermal is Thermal.THROTTLING
    assert read(state, None, 60.0).thermal is Thermal.NORMAL


def test_configured_bounds_replace_the_defaults() -> None:
    state = next_levels(
        LevelState(),
        utilization=0.35,
        temperature_c=55.0,
        thermal_slowdown=False,
        fresh=True,
        memory=MemoryThresholds(low=0.1, normal=0.2, high=0.3, critical=0.4),
        thermal=ThermalThresholds(normal=40, warning=50, throttling=60),
    )
    assert (state.pressure, state.thermal) == (Pressure.CRITICAL, Thermal.THROTTLING)


def test_a_bound_below_the_margin_can_still_be_left() -> None:
    tight = MemoryThresholds(low=0.01, normal=0.015, high=0.02, critical=0.9)
    state = LevelState()
    for share in (0.5, 0.0, 0.0):
        state = next_levels(
            state, utilization=share, temperature_c=None, thermal_slowdown=False, fresh=True, memory=tight
        )
    assert state.pressure is Pressure.LOW


def test_the_release_of_a_bound_is_exact() -> None:
    assert released_below(0.85, 0.03) == 0.82


@pytest.mark.parametrize(
    ("thermal", "factor"),
    [
        (Thermal.UNKNOWN, 1.0),
        (Thermal.NORMAL, 1.0),
        (Thermal.WARNING, 0.9),
        (Thermal.THROTTLING, 0.5),
        (Thermal.CRITICAL, 0.0),
    ],
)
def test_heat_reduces_concurrency(thermal: Thermal, factor: float) -> None:
    assert concurrency_factor(thermal) == factor


def test_the_state_is_stored_as_plain_words() -> None:
    fields = after((0.96, 70.0), (0.60, 70.0)).to_fields()
    assert fields == {
        "pressure": "critical",
        "full": "1",
        "thermal": "warning",
        "memory_asked": "normal",
        "thermal_asked": "warning",
    }


def test_a_missing_key_is_a_gpu_that_was_never_read() -> None:
    assert LevelState.from_fields({}) == LevelState()
    assert LevelState.from_fields({"seq": "7", "pressure_since_ms": "12"}) == LevelState()


def test_a_stored_level_without_its_last_reading_needs_two_samples_to_fall() -> None:
    state = LevelState.from_fields({"pressure": "critical", "thermal": "critical"})
    state = read(state, 0.1, 40.0)
    assert (state.pressure, state.thermal) == (Pressure.CRITICAL, Thermal.CRITICAL)
    state = read(state, 0.1, 40.0)
    assert (state.pressure, state.thermal) == (Pressure.LOW, Thermal.NORMAL)


@pytest.mark.parametrize(
    "fields",
    [{"pressure": "huge"}, {"thermal": "warm"}, {"memory_asked": "x"}, {"pressure": "low", "full": "1"}],
)
def test_a_stored_level_that_means_nothing_is_an_error(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"huge|warm|x|low"):
        LevelState.from_fields(fields)
