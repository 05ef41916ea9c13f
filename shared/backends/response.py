"""The answer to one request as it arrives, parsed by llhttp (httptools)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from shared.backends.errors import BackendError, Broken, Interrupted

_HIGH_BYTES = 128 * 1024
"""Unread bytes from which the backend has to wait; what one read of the socket brings comes on top."""
_DRY_BYTES = 64 * 1024
"""A head, or a trailer, or an extension of a chunk that is longer than this is no answer."""


class Line(Protocol):
    """What an answer does with its connection."""

    def abort(self) -> None:
        """Close it at once."""

    def done(self, *, keep: bool) -> None:
        """The answer is complete; ``keep``: both sides will have another request on it."""

    def settle(self) -> None:
        """Give the answer's last bytes a moment."""

    def pause(self) -> None:
        """Read no more."""

    def resume(self) -> None:
        """Read on."""


class Response:
    """An answer: ``status`` and headers are there once ``started`` returned; ``readany`` reads the body.

    Whoever has it calls ``close`` in the end: that closes the connection of an answer that is not complete at
    once, which is what frees a backend's slot. ``on_...`` are the parser's.
    """

    __slots__ = (
        "_chunks",
        "_complete",
        "_count",
        "_dry",
        "_error",
        "_fields",
        "_held",
        "_interim",
        "_keep",
        "_line",
        "_loop",
        "_parser",
        "_paused",
        "_reason",
        "_settling",
        "_waiter",
        "on_body",
        "status",
    )

    def __init__(self, line: Line, loop: asyncio.AbstractEventLoop, *, keep: bool) -> None:
        self.status = 0
        self._line: Line | None = line
        self._loop = loop
        self._keep = keep
        self._reason = b""
        self._fields: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._count: int | None = None
        self._held = 0
        self._dry = 0
        self._complete = self._interim = self._paused = self._settling = False
        self._error: BackendError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.on_body: Callable[[bytes], None] = self._chunks.append
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    @property
    def reason(self) -> str:
        """The words behind the status, empty where there are none."""
        return self._reason.decode("latin-1")

    @property
    def content_type(self) -> str:
        """The media type in small letters, without its parameters; empty if none is named."""
        return (self.header("content-type") or "").partition(";")[0].strip().lower()

    @property
    def at_eof(self) -> bool:
        """Whether all of a complete answer has been read."""
        return self._complete and not self._chunks

    @property
    def unheard(self) -> bool:
        """Whether not a single byte has come."""
        return not self.status and not self._dry and not self._interim

    def header(self, name: str) -> str | None:
        """The first header of this name; bytes that are no UTF-8 as ``surrogateescape`` writes them."""
        value = self._fields.get(name.lower().encode())
        return None if value is None else value.strip().decode("utf-8", "surrogateescape")

    async def started(self) -> None:
        """Wait for status and headers; raises ``Interrupted`` or ``Broken``, and then it is closed."""
        try:
            while not self.status:
                if self._error is not None:
                    raise self._error
                await self._wait()
        except BaseException:
            self.close()
            raise

    async def readany(self) -> bytes:
        """All of the body that is there, waiting for some; empty at its end.

        Raises ``Interrupted`` where it breaks off or stays away, once all before that has been read, and
        ``Broken`` where it is no HTTP.
        """
        chunks = self._chunks
        while not chunks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._held = 0
        if self._paused:
            self._resume()
        return data

    def settle(self) -> None:
        """Nobody reads on, for the answer is complete in its own terms: let the connection end by itself.

        For that it gets ``connection.SETTLE_S``; ``close`` has nothing to do any more. Whoever closes a
        connection first keeps its port busy for a minute (TIME_WAIT), and a kept one has to be read to its
        end.
        """
        line = self._line
        if line is not None:
            self._settling = True
            self._chunks.clear()
            line.settle()
            if self._paused:
                self._resume()

    def close(self) -> None:
        """Close the connection, unless the answer is complete."""
        if self._settling:
            return
        if self._line is not None:
            self.fail(Interrupted("backend_interrupted", "closed from our side"))
        self._chunks.clear()

    def fail(self, error: BackendError) -> None:
        """Nothing more will come: what was read until now can still be had, then ``error`` is raised."""
        line = self._line
        if line is not None:
            self._line = self._parser = None
            self._error = error
            line.abort()
            self._wake()

    def feed(self, data: bytes) -> None:
        """The next bytes of the connection."""
        parser, line, chunks = self._parser, self._line, self._chunks
        if parser is None or line is None:
            return
        before = len(chunks)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._complete:
                self.fail(Broken(f"does not speak HTTP: {error}"))
                return
            self._keep = False
        if self._complete:
            if self._count is not None:
                del chunks[self._count :]
            self._line = self._parser = None
            line.done(keep=self._keep)
        elif len(chunks) != before:
            self._dry = 0
            self._hold(len(data))
        else:
            self._dry += len(data)
            if self._dry > _DRY_BYTES:
                self.fail(Broken(f"sent {self._dry} bytes of head or framing without a body"))
                return
        self._wake()

    def lost(self, error: Exception | None) -> None:
        """The connection ended, by itself (None) or by ``error``."""
        if self._line is None:
            return
        if error is None and self.status and self._until_close():
            self._complete = True
            self._line = self._parser = None
            self._wake()
        else:
            where = "in the middle of the answer" if self.status else "before the answer"
            self.fail(Interrupted("backend_interrupted", f"the connection ended {where}{_words(error)}"))

    def on_message_begin(self) -> None:
        if self._complete and self._count is None:
            self._keep = False  # nobody asked for a second answer
            self._count = len(self._chunks)

    def on_status(self, words: bytes) -> None:
        if not self.status:
            self._reason += words

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else it is a trailer
            self._fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        if self._complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            self._fields.clear()
            self._reason = b""
        else:
            self.status = status

    def on_message_complete(self) -> None:
        if not self.status or self._complete:
            return
        self._complete = True
        if self._keep and self._parser is not None:
            self._keep = self._parser.should_keep_alive()

    def _hold(self, count: int) -> None:
        if self._settling:
            self._chunks.clear()
            return
        self._held += count
        if self._held > _HIGH_BYTES and not self._paused and self._line is not None:
            self._paused = True
            self._line.pause()

    def _resume(self) -> None:
        self._paused = False
        if self._line is not None:
            self._line.resume()

    def _until_close(self) -> bool:
        coded = self._fields.get(b"transfer-encoding", b"").lower()
        return b"content-length" not in self._fields and b"chunked" not in coded

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


def _words(error: Exception | None) -> str:
    return f": {error}" if error is not None and str(error) else ""
