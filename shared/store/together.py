"""Calls that come while one of their kind is under way go out together, as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from shared.store.wire import Word

_PATIENCE_S = 0.02
"""A call that has not come back by then may be on a dead connection: what waits goes past it."""
_MOST_BYTES = 32_768
_MOST = 64

Call = tuple[Word, ...]
_Waiting = tuple[Call, "asyncio.Future[Any]"]


class Together:
    """Gathers calls of a script that takes any number of them and is safe under its own replay.

    ``run`` sends the words of several calls one behind the other and answers with a reply for each. One alone
    goes out at once. Where a call among several makes the script fail each is sent by itself, so that only
    its caller is told.
    """

    def __init__(self, run: Callable[[Sequence[Word]], Awaitable[Sequence[Any]]]) -> None:
        self._run = run
        self._since: float | None = None
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, words: Call) -> Any:
        """The reply to one call; raises what ``run`` does."""
        if _size(words) >= _MOST_BYTES:
            return (await self._run(words))[0]
        if self._since is not None:
            loop = asyncio.get_running_loop()
            reply: asyncio.Future[Any] = loop.create_future()
            if not self._waiting:
                loop.call_later(_PATIENCE_S, self._look)
            self._waiting.append((words, reply))
            return await reply
        since = self._since = time.monotonic()
        try:
            return (await self._run(words))[0]
        finally:
            self._over(since)

    def _look(self) -> None:
        """Send what waits past a call that does not come back."""
        if self._since is not None and time.monotonic() - self._since >= _PATIENCE_S:
            self._send_next()
        if self._waiting:
            asyncio.get_running_loop().call_later(_PATIENCE_S, self._look)

    def _over(self, since: float) -> None:
        if self._since == since:  # else others went past it, and send what waits
            self._send_next()

    def _send_next(self) -> None:
        self._since = None
        batch = self._next()
        if batch:
            self._since = time.monotonic()
            task = asyncio.create_task(self._send(batch, self._since))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = _MOST_BYTES
        while self._waiting and len(batch) < _MOST and room > 0:
            batch.append(self._waiting.pop(0))
            room -= _size(batch[-1][0])
        return batch

    async def _send(self, batch: Sequence[_Waiting], since: float) -> None:
        try:
            found: Sequence[Any] = await self._run([word for words, _ in batch for word in words])
        except ResponseError:
            found = [await self._alone(words) for words, _ in batch]
        except Exception as error:
            found = [error] * len(batch)
        finally:
            self._over(since)
        for (_, reply), one in zip(batch, found, strict=True):
            if reply.done():
                continue  # whoever asked waits no more
            if isinstance(one, Exception):
                reply.set_exception(one)
            else:
                reply.set_result(one)

    async def _alone(self, words: Call) -> Any:
        try:
            return (await self._run(words))[0]
        except Exception as error:
            return error


def _size(words: Call) -> int:
    return sum(len(word) for word in words if not isinstance(word, int))
