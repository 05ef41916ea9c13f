"""One attempt that a router runs, and what can end it from outside."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from shared import outcomes
from shared.limit import Limit
from shared.store.grants import Grant

_Found = TypeVar("_Found")


class Cut(Enum):
    """Why an attempt ends before its answer; the value is the ``Failure`` that is recorded, None: nothing."""

    LOST = None  # somebody else's job by now
    CANCELLED = outcomes.CANCELLED
    EXPIRED = outcomes.EXPIRED
    RELEASED = outcomes.RELEASED


@dataclass(eq=False, slots=True)
class Attempt:
    """``body`` is what goes to the backend (JSON), ``deadline_in_s`` counts from now.

    ``queue_ms``: how long the job had waited, None if that can't be read. ``handed``: an api decided on it
    and started it. ``nobody_waits``: whether Redis said so when its success was recorded.
    """

    grant: Grant
    body: str
    deadline_in_s: float
    request_id: str = ""
    queue_ms: float | None = None
    handed: bool = False
    nobody_waits: bool = False
    _limit: Limit | None = None
    _cut: Cut | None = None

    async def until_cut(self, work: Coroutine[Any, Any, _Found]) -> _Found | Cut:
        """What ``work`` comes to, or why it was ended: its deadline passed, or somebody called ``cut``."""
        if self._cut is not None:
            work.close()
            return self._cut
        try:
            with Limit(max(0.0, self.deadline_in_s)) as self._limit:
                return await work
        except TimeoutError:
            if self._limit is None or not self._limit.expired:
                raise
            return self._cut or Cut.EXPIRED
        finally:
            self._limit = None

    def cut(self, cut: Cut) -> None:
        """End it; of several the first counts."""
        if self._cut is not None:
            return
        self._cut = cut
        if self._limit is not None and not self._limit.expired:
            self._limit.cut()
