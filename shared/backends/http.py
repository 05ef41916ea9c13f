"""HTTP/1.1 to the backends, for the calls that make them work (docs/adr/0019)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from errno import ECONNREFUSED
from functools import cache
from time import monotonic
from typing import cast

from shared.backends.connection import Connection
from shared.backends.errors import Interrupted, NotSent
from shared.backends.names import Lookup, Names, look_up
from shared.backends.response import Response
from shared.backends.target import Target, target_of
from shared.deadlines import Deadlines

_MOST_TARGETS = 1024


class HttpClient:
    """Calls any number of backends; made and used within one running loop, closed with ``aclose``.

    No redirects, no proxies, no cookies, nothing compressed, no limit on connections.
    """

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()
        self._names = Names(lookup)
        self._targets: dict[tuple[str, bool], Target] = {}
        self._kept: dict[tuple[str, int, bool], list[Connection]] = {}
        self._closed = False

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        connect_timeout_s: float,
        idle_timeout_s: float,
        keep: bool = False,
    ) -> Response:
        """Send JSON; returns once the answer's headers are there.

        ``idle_timeout_s`` is the longest silence of the backend before the headers and between bytes; it
        does not count while our own side does not read. With ``keep`` an idle connection is used, and this
        one kept for ``KEPT_S`` after a complete answer; if an idle one breaks before the first byte of an
        answer, the server was closing it, and the call is made once more, on a new one.

        Raises ``NotSent``, ``Interrupted`` and ``Broken``. Close the answer, whatever happens.
        """
        target = self._targets.get((url, keep)) or self._target(url, keep=keep)
        head = target.request_head(headers, len(body))
        if keep:
            connection = self._idle(target)
            if connection is not None:
                response = connection.ask(head, body, idle_timeout_s, keep=True)
                try:
                    await response.started()
                except Interrupted as error:
                    if error.type == "backend_timeout" or not response.unheard or self._closed:
                        raise
                else:
                    return response
        connection = await self._connected(target, connect_timeout_s)
        response = connection.ask(head, body, idle_timeout_s, keep=keep)
        await response.started()
        return response

    async def aclose(self) -> None:
        """Close all connections; calls under way are interrupted, later ones not sent."""
        self._closed = True
        self._names.close()
        self._deadlines.close()
        await asyncio.sleep(0)  # sockets are closed in the loop's next turn

    def _target(self, url: str, *, keep: bool) -> Target:
        if len(self._targets) >= _MOST_TARGETS:
            self._targets.clear()
        target = self._targets[url, keep] = target_of(url, keep=keep)
        return target

    def _idle(self, target: Target) -> Connection | None:
        kept = self._kept.get(target.origin)
        while kept:
            connection = kept.pop()
            if connection.usable and connection.due > monotonic():
                return connection
            connection.abort()
        return None

    async def _connected(self, target: Target, timeout_s: float) -> Connection:
        kept = self._kept.get(target.origin)
        if kept is None:
            kept = self._kept[target.origin] = []
        connection = Connection(self._loop, self._deadlines, kept, timeout_s)
        task = connection.connecting = cast("asyncio.Task[object]", asyncio.current_task())
        cancelling = task.cancelling()
        self._deadlines.watch(connection)
        try:
            if target.literal and not target.tls:
                await self._loop.create_connection(lambda: connection, target.host, target.port)
            else:
                await self._reach(target, connection)
        except BaseException as error:
            connection.abort()
            if isinstance(error, asyncio.CancelledError):
                # As asyncio.timeout tells its own cancellation from anybody else's.
                if connection.expired and task.uncancel() <= cancelling:
                    raise NotSent(
                        "connect_timeout", f"{target.host}: no connection in {timeout_s:g} s"
                    ) from None
            elif isinstance(error, OSError):
                raise _not_sent(target, error) from error
            raise
        connection.connecting = None
        if self._closed:
            connection.abort()
            raise NotSent("connect_failed", "our side is closing")
        return connection

    async def _reach(self, target: Target, connection: Connection) -> None:
        """Try the addresses one by one, each for its share of the time that is left."""
        addresses = [target.host] if target.literal else await self._addresses(target)
        context = _tls() if target.tls else None
        for left in range(len(addresses), 0, -1):
            address = addresses[-left]
            share_s = (connection.due - monotonic()) / left if left > 1 else None
            try:
                async with asyncio.timeout(share_s):
                    await self._loop.create_connection(
                        lambda: connection,
                        address,
                        target.port,
                        ssl=context,
                        server_hostname=target.host if context else None,
                    )
            except OSError:  # TimeoutError is one
                if left == 1:
                    self._names.failed(target.host)
                    raise
            else:
                self._names.answered(target.host, address)
                return

    async def _addresses(self, target: Target) -> list[str]:
        try:
            addresses = list(await self._names.addresses(target.host, target.port))
        except (OSError, UnicodeError) as error:
            raise NotSent("dns_failed", f"{target.host}: {error}") from error
        if not addresses:
            raise NotSent("dns_failed", f"{target.host}: no address")
        return addresses


def _not_sent(target: Target, error: OSError) -> NotSent:
    words = f"{target.host}:{target.port}: {error.strerror or error or type(error).__name__}"
    if isinstance(error, ssl.SSLError):
        return NotSent("tls_failed", words)
    if isinstance(error, TimeoutError):
        return NotSent("connect_timeout", words)
    return NotSent("connect_refused" if error.errno == ECONNREFUSED else "connect_failed", words)


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
