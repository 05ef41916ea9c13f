"""One timer for everything that may last too long: calls mostly end long before their time is up."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import Protocol

_LATE_S = 0.1
"""A timer that fires later than this says that we stood still, not that the others were silent."""
_SLACK_S = 0.005


class Watched(Protocol):
    """``due``: the monotonic time at which ``overdue`` is called, set anew as often as you like."""

    due: float

    def overdue(self) -> None:
        """End it."""

    def drop(self) -> None:
        """End it for another reason."""


class Deadlines:
    """Calls ``overdue`` of what is due, a few ms late.

    Putting a deadline off costs nothing: the timer looks at all of them when the earliest that it was told is
    over.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at = inf
        self._waited = False

    def watch(self, item: Watched) -> None:
        """Look after it from now on."""
        self._watched.add(item)
        if item.due < self._at:
            self._arm(item.due)

    def forget(self, item: Watched) -> None:
        """It needs no looking after any more."""
        self._watched.discard(item)

    def sooner(self, due: float) -> None:
        """One of those watched is due at this time, maybe before the time that it had."""
        if due < self._at:
            self._arm(due)

    def close(self) -> None:
        """Drop all that is watched."""
        for item in list(self._watched):
            item.drop()
        self._watched.clear()
        self._arm(inf)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = due
        self._timer = (
            None if due == inf else self._loop.call_later(max(0.0, due - monotonic()) + _SLACK_S, self._look)
        )

    def _look(self) -> None:
        now = monotonic()
        if now - self._at > _LATE_S and not self._waited:
            # What was said meanwhile lies in the sockets and has to be read first.
            self._waited = True
            self._timer = self._loop.call_later(_LATE_S, self._look)
            return
        self._waited = False
        try:
            for item in [item for item in self._watched if item.due <= now]:
                item.due = inf
                item.overdue()
        finally:  # one that fails must not stop the clock of all
            self._arm(min((item.due for item in self._watched), default=inf))
