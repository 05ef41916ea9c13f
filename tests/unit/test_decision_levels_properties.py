"""Levels over arbitrary readings: no flapping, nothing forgotten, nothing gained from what is unknown."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shared.decision.levels import LevelState
from shared.states import Pressure, Thermal
from tests.unit.strategies import PROPERTY, after, read

MEMORY_ORDER = (Pressure.LOW, Pressure.NORMAL, Pressure.HIGH, Pressure.CRITICAL)
HEAT_ORDER = (Thermal.NORMAL, Thermal.WARNING, Thermal.THROTTLING, Thermal.CRITICAL)
ANY_LEVEL = st.builds(
    lambda shares, heats: after(*zip(shares, heats, strict=True)),
    st.lists(st.floats(0, 1), min_size=2, max_size=2),
    st.lists(st.floats(20, 100), min_size=2, max_size=2),
)


@PROPERTY
@given(state=ANY_LEVEL, share=st.floats(0, 1), degrees=st.floats(20, 100))
def test_a_restart_between_two_samples_forgets_nothing(
    state: LevelState, share: float, degrees: float
) -> None:
    restored = LevelState.from_fields(state.to_fields())
    assert restored == state
    assert read(restored, share, degrees) == read(state, share, degrees)


@PROPERTY
@given(
    state=ANY_LEVEL,
    share=st.none() | st.floats(0, 1),
    degrees=st.none() | st.floats(20, 100),
    slowdown=st.booleans(),
)
def test_a_single_reading_or_none_never_improves_a_level_by_itself(
    state: LevelState, share: float | None, degrees: float | None, slowdown: bool
) -> None:
    """Invariant 9: what is unknown never raises capacity, neither does a sample that is not fresh."""
    risen = read(state, 0.99, 99.0)
    once = read(risen, share, degrees, slowdown=slowdown)
    assert (once.pressure, once.full, once.thermal) == (Pressure.CRITICAL, True, Thermal.CRITICAL)
    unread = read(state, None, None, slowdown=slowdown)
    assert unread.pressure is state.pressure
    assert HEAT_ORDER.index(unread.thermal) >= HEAT_ORDER.index(state.thermal)


@PROPERTY
@given(
    start=st.floats(0, 1),
    centre=st.floats(0.05, 0.98),
    noise=st.lists(st.floats(-0.0149, 0.0149), min_size=4, max_size=30),
)
def test_noise_inside_the_margin_moves_the_level_in_one_direction_only(
    start: float, centre: float, noise: list[float]
) -> None:
    """Invariant 6: readings within 3 points of each other never make a level rise and fall."""
    state = after((start, None))
    seen = [(state := read(state, centre + offset)) for offset in noise]
    steps = [MEMORY_ORDER.index(level.pressure) + level.full for level in seen]
    assert steps == sorted(steps) or steps == sorted(steps, reverse=True)


class NoisyCard(RuleBasedStateMachine):
    """A card whose readings wander within the margin around one bound, with gaps: it changes level once."""

    def __init__(self) -> None:
        super().__init__()
        self.state = after((0.84, 79.0))
        self.levels = [self.state]

    @rule(share=st.floats(0.821, 0.87), degrees=st.floats(77.1, 83.0), fresh=st.booleans())
    def sample(self, share: float, degrees: float, fresh: bool) -> None:
        self.state = read(self.state, share, degrees, fresh=fresh)
        self.levels.append(self.state)

    @rule()
    def unread(self) -> None:
        self.state = read(self.state)
        self.levels.append(self.state)

    @rule()
    def restart(self) -> None:
        self.state = LevelState.from_fields(self.state.to_fields())

    @invariant()
    def does_not_flap(self) -> None:
        pressures = [MEMORY_ORDER.index(level.pressure) for level in self.levels]
        heats = [HEAT_ORDER.index(level.thermal) for level in self.levels]
        assert pressures == sorted(pressures)
        assert heats == sorted(heats)


TestNoisyCard = NoisyCard.TestCase
TestNoisyCard.settings = settings(PROPERTY, stateful_step_count=25)
