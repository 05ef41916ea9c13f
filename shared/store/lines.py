"""Connections that wait in the server: one for each reader, given up with the first thing that goes wrong."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from shared.store.wire import Options, Replies, opened


class Line:
    """One connection, opened when it is first needed; a read that fails or is cancelled takes it along.

    What the server sends for a read that nobody waits for any more would else be the answer to the next one.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._replies: Replies | None = None

    async def ask(self, command: bytes) -> Any:
        """Send one ``packed`` command, answered within the client's ``socket_timeout``.

        Raises redis-py's ``ConnectionError``, ``TimeoutError`` and ``ResponseError``; never repeats.
        """
        replies, self._replies = self._replies, None
        if replies is None or replies.closed:
            replies = await opened(self._options)
        try:
            found = await replies.send(command, self._options.timeout_s)
        except BaseException:
            replies.close()
            raise
        self._replies = replies
        return found

    def close(self) -> None:
        """Close it; the next ``ask`` opens another."""
        if self._replies is not None:
            self._replies.close()
            self._replies = None


class LineClient(Redis):
    """redis-py's client, and lines of their own to the same server; they are closed with it."""

    def line(self) -> Line:
        """A line for one reader."""
        pool = self.connection_pool
        line = Line(Options(pool.connection_class, pool.connection_kwargs))
        self.__dict__.setdefault("_lines", []).append(line)
        return line

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        for line in self.__dict__.get("_lines", ()):
            line.close()
        await super().aclose(close_connection_pool)
