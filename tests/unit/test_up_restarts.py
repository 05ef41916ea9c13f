"""How long the supervisor waits before it starts a dead child again, and when it gives up."""

from __future__ import annotations

from services.up.supervisor import RestartPolicy


def test_restarts_wait_twice_as_long_each_time_up_to_a_cap_and_end() -> None:
    policy = RestartPolicy(base_s=0.5, cap_s=5.0, deaths=6, window_s=30.0)
    assert [policy.died(now) for now in (0, 1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 4.0, 5.0, None]


def test_deaths_far_apart_are_forgotten() -> None:
    policy = RestartPolicy()
    assert [policy.died(now) for now in (0, 20, 40, 60, 80, 100, 120)] == [0.5, 1, 1, 1, 1, 1, 1]
