"""One client's connection: what goes out on it, and whether anybody still listens."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from starlette.types import Receive, Send

from services.api.gateway.dialects import Dialect, comment
from services.api.gateway.refusals import Refusal

Headers = list[tuple[bytes, bytes]]
_JSON = (b"content-type", b"application/json")
STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_GOODBYE_S = 1.0
"""How long a client that reads slowly may hold up the word that its answer broke off."""


class Client:
    """Sends one answer. ``sending_since``: when the piece on its way was begun, None between two."""

    def __init__(self, receive: Receive, send: Send, dialect: Dialect) -> None:
        self._receive = receive
        self._send = send
        self._dialect = dialect
        self.begun = False
        self.streams = False
        self.ended = False
        self.answered = False
        """Whether any byte of a backend's answer went out."""
        self.sending_since: float | None = None

    async def gone(self) -> None:
        """Return once the client has left (or has got all of its answer)."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def begin(self, status: int, headers: Headers) -> None:
        self.begun = True
        self.streams = STREAM_HEADERS[0] in headers
        # Waits for a client that asked again on its connection and has not taken its last answer yet.
        self.sending_since = time.monotonic()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.sending_since = None

    async def write(self, piece: bytes, *, last: bool = False) -> None:
        self.sending_since = time.monotonic()
        self.ended = last
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
        self.sending_since = None

    async def relay(self, piece: bytes, *, last: bool = False) -> None:
        """Part of a backend's answer."""
        self.answered = True
        await self.write(piece, last=last)

    async def comment(self, text: str) -> None:
        if not self.ended:
            await self.write(comment(text))

    async def whole(self, status: int, body: bytes, headers: Headers) -> None:
        """An answer in one piece."""
        self.answered = True
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.write(body, last=True)

    async def refuse(self, refusal: Refusal, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Say why there is no answer (or no more of it), in the way that is still open."""
        if self.ended:
            return
        if not self.begun:
            await self.whole(
                refusal.status, self._dialect.error_body(refusal), [_JSON, *headers, *refusal.headers]
            )
            return
        if not self.streams:
            return  # half an object: that its connection breaks off is all that can be said
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self.write(self._dialect.error_event(refusal), last=True)


class Patience:
    """Looks after a request that has no answer yet: every few seconds, from the fifth second on.

    ``look`` says how it stands; streaming clients get that as a comment, behind ``headers``, so that nothing
    on their way takes the connection for dead.
    """

    EVERY_S = 5.0

    def __init__(
        self, client: Client, look: Callable[[], Awaitable[str]], headers: Headers, *, streaming: bool
    ) -> None:
        self._client = client
        self._look = look
        self._headers = headers
        self._streaming = streaming
        self._task: asyncio.Task[None] | None = None
        self._begins_at = time.monotonic() + self.EVERY_S

    def attend(self, now: float) -> None:
        """Begin if it is time (``now``: monotonic)."""
        if now >= self._begins_at:
            self._begins_at = math.inf
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """The answer is there: nothing is said any more once this returns."""
        self._begins_at = math.inf
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _keep(self) -> None:
        while True:
            said = await self._look()
            if self._streaming:
                if not self._client.begun:
                    await self._client.begin(200, [*STREAM_HEADERS, *self._headers])
                await self._client.comment(said)
            await asyncio.sleep(self.EVERY_S)
