"""When the tokens of a simulated answer fall due."""

from __future__ import annotations

import time

INSTANT_S = 0.001
"""Less than this is not slept for."""
_TICK_S = 0.02
"""Tokens that fall into one tick go out in one write: smooth to the eye, cheap at any speed."""


class Pace:
    """``total`` tokens at ``rate`` a second, from now on; the first one is due at once."""

    def __init__(self, total: int, rate: float) -> None:
        self._total = total
        self._rate = rate
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def due(self, done: int, stop_at: int | None) -> int:
        """How many tokens are due after ``done`` of them, at least one more, and none past ``stop_at``."""
        left_s = (self._total - 1) / self._rate - self.elapsed_s
        due = self._total if left_s < INSTANT_S else int(self.elapsed_s * self._rate) + 1
        return min(max(due, done + 1), self._total if stop_at is None or done >= stop_at else stop_at)

    def wait_s(self, done: int) -> float:
        """Seconds until the next token, at least a tick, but not past the end of the answer; 0 = at once."""
        if done >= self._total:
            return 0.0
        now = self.elapsed_s
        wait_s = min(max(done / self._rate - now, _TICK_S), (self._total - 1) / self._rate - now)
        return wait_s if wait_s >= INSTANT_S else 0.0

    def delay(self, seconds: float) -> None:
        """Move everything that is not due yet by a time in which nothing was computed."""
        self._started += seconds
