"""One TCP connection to a backend: the request goes out on it, the answer comes in."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import cast

from shared.backends.errors import Interrupted, NotSent
from shared.backends.response import Response
from shared.deadlines import Deadlines

SETTLE_S = 0.25
"""How long the backend has to close its side, or to end a body whose content is complete."""
KEPT_S = 2.0
"""How long an idle connection may be used again; vLLM (uvicorn) keeps it open for 5 s."""
_PIECE_BYTES = 256 * 1024
"""A body longer than this is written in pieces: in one, it would hold up all others."""


class Connection(asyncio.Protocol):
    """Carries one request at a time. ``kept`` is where it goes when it is idle and may be used again.

    ``due`` is when the backend has been silent for too long (or when an idle connection is too old).
    """

    __slots__ = (
        "_deadlines",
        "_full",
        "_idle_s",
        "_kept",
        "_loop",
        "_response",
        "_settling",
        "_transport",
        "_unsent",
        "connecting",
        "due",
        "expired",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        kept: list[Connection],
        connect_timeout_s: float,
    ) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._kept = kept
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._unsent: memoryview | None = None
        self._idle_s = 0.0
        self._full = self._settling = self.expired = False
        self.due = monotonic() + connect_timeout_s
        self.connecting: asyncio.Task[object] | None = None
        """Who waits for the connection to come about; cancelled when that takes too long."""

    @property
    def usable(self) -> bool:
        """Whether a request can be written."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, head: bytes, body: bytes, idle_timeout_s: float, *, keep: bool) -> Response:
        """Send a request; the answer is still to be waited for. Raises ``NotSent``."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise NotSent("connect_failed", "the connection was closed before the request was sent")
        self._idle_s = idle_timeout_s
        self.due = due = monotonic() + idle_timeout_s
        self._deadlines.sooner(due)
        response = self._response = Response(self, self._loop, keep=keep)
        if len(body) <= _PIECE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            self._unsent = memoryview(body)
            self._pump()
        return response

    def abort(self) -> None:
        """Close it at once."""
        transport, self._transport = self._transport, None
        self._response = self._unsent = None
        self._deadlines.forget(self)
        if transport is not None:
            transport.abort()

    def drop(self) -> None:
        """Close it; whoever waits for an answer is told."""
        if self._response is not None:
            self._response.fail(Interrupted("backend_interrupted", "our side is closing"))
        self.abort()

    def done(self, *, keep: bool) -> None:
        """The answer is complete."""
        self._response = None
        if self._unsent is not None:
            self.abort()  # it answered without having read everything
            return
        if keep:
            self._kept.append(self)
        self._settling = False
        self.due = due = monotonic() + (KEPT_S if keep else SETTLE_S)
        self._deadlines.sooner(due)

    def settle(self) -> None:
        """Nobody waits for the rest of the answer."""
        self._settling = True
        self.due = due = monotonic() + SETTLE_S
        self._deadlines.sooner(due)

    def pause(self) -> None:
        """Read no more: silence is our own doing from now on."""
        if self.usable and self._transport is not None:
            self._transport.pause_reading()
            self.due = inf

    def resume(self) -> None:
        """Read on."""
        if self.usable and self._transport is not None:
            self._transport.resume_reading()
            if not self._settling:
                self.due = due = monotonic() + self._idle_s
                self._deadlines.sooner(due)

    def overdue(self) -> None:
        """It took too long, whatever it was."""
        if self.connecting is not None:
            self.expired = True
            self.connecting.cancel()
        elif self._response is not None and not self._settling:
            silent = f"silent for {self._idle_s:g} s"
            self._response.fail(Interrupted("backend_timeout", silent))
        else:
            self.drop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            self._retire()  # nobody asked for anything
            return
        if not self._settling:
            self.due = monotonic() + self._idle_s
        response.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        response, self._response = self._response, None
        self._retire()
        if response is not None:
            response.lost(exc)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pump()

    def _pump(self) -> None:
        unsent, transport = self._unsent, self._transport
        if unsent is None or transport is None or self._full or transport.is_closing():
            return
        if self.due != inf:
            self.due = monotonic() + self._idle_s
        self._unsent = unsent[_PIECE_BYTES:] if len(unsent) > _PIECE_BYTES else None
        transport.write(unsent[:_PIECE_BYTES])
        if self._unsent is not None and not self._full:
            self._loop.call_soon(self._pump)

    def _retire(self) -> None:
        if self in self._kept:
            self._kept.remove(self)
        self.abort()
