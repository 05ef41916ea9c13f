"""A limit on how long a piece of work may take, where ``asyncio.timeout`` would cost as much as the work."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Self

from shared.deadlines import Deadlines

_deadlines: tuple[asyncio.AbstractEventLoop, Deadlines] | None = None


def deadlines() -> Deadlines:
    """Those of the running loop."""
    global _deadlines
    loop, known = asyncio.get_running_loop(), _deadlines
    if known is None or known[0] is not loop:
        known = _deadlines = (loop, Deadlines())
    return known[1]


class Limit:
    """``with Limit(seconds):`` around work that awaits; raises ``TimeoutError`` once the time is up.

    As ``asyncio.timeout`` does, it ends the work by cancelling its task and tells that from a cancellation
    by anybody else; a few ms late. One timer of the loop's serves all of them. Not to be entered twice.
    """

    __slots__ = ("_cancelling", "_deadlines", "_seconds", "_task", "due", "expired")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self.due = inf
        self.expired = False
        """Whether the work was ended, by its time or by ``cut``."""

    def cut(self) -> None:
        """End the work as soon as the loop gets to it: its own task may be the one that says so."""
        asyncio.get_running_loop().call_soon(self.overdue)

    def overdue(self) -> None:
        """End the work; not to be called by its own task."""
        if self._task is not None and not self.expired:
            self.expired = True
            self._task.cancel()

    def drop(self) -> None:
        """Nobody looks after it any more."""

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a Limit has to be used in a task")
        self._task = task
        self._cancelling = task.cancelling()
        self.due = monotonic() + self._seconds
        self._deadlines = deadlines()
        if self._seconds > 0:
            self._deadlines.watch(self)
        else:
            self.cut()  # at the first wait, not a moment later
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._deadlines.forget(self)
        if (
            self.expired
            and task is not None
            and task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise TimeoutError from error
