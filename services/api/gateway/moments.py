"""A moment's wait that all who have time share: what they do then they do together."""

from __future__ import annotations

import asyncio

MOMENT_S = 0.005
"""Next to any answer of a language model nothing; among thousands of short ones, several ends in one call."""


class Moments:
    """Begins a moment when somebody waits and none is under way; all who wait go on at its end."""

    def __init__(self, length_s: float = MOMENT_S) -> None:
        self._length_s = length_s
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Until the end of this moment."""
        loop = asyncio.get_running_loop()
        end = loop.create_future()
        self._waiting.append(end)
        if len(self._waiting) == 1:
            loop.call_later(self._length_s, self._over)
        await end

    def _over(self) -> None:
        waiting, self._waiting = self._waiting, []
        for end in waiting:
            if not end.done():
                end.set_result(None)
