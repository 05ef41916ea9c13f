"""A port that can be closed and opened again, as a server that dies and comes back would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from errno import EACCES, EADDRINUSE

from aiohttp import web

from shared.errors import ConfigError, OrchestratorError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_BACKLOG = 1024


class PortTaken(OrchestratorError):
    """A port cannot be listened on; names the port and the setting that it comes from."""

    def __init__(self, port: int, setting: str, reason: str) -> None:
        super().__init__(f"port {port} ({setting}) {reason}: free it, or set {setting} to another port")


class Listener:
    """One HTTP port. While closed, connections are refused, but nobody else is given the port.

    The handler of a request is cancelled when its client leaves.
    """

    def __init__(self, host: str, port: int, setting: str, handler: Handler) -> None:
        self._host = host
        self._setting = setting
        self._handler = handler
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._reserved = _bind(host, port, setting)
        self.port: int = self._reserved.getsockname()[1]

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self) -> None:
        """Accept connections; raises ``PortTaken``."""
        if self._server is not None:
            return
        listening = _bind(self._host, self.port, self._setting)
        http = web.Server(self._handler, handler_cancellation=True, access_log=None)
        try:
            listening.listen(_BACKLOG)
            self._server = await asyncio.get_running_loop().create_server(http, sock=listening)
        except OSError as error:
            listening.close()
            raise _taken(self.port, self._setting, error) from None
        self._http = http

    async def close(self) -> None:
        """Refuse connections and cut those that there are; their handlers have ended afterwards."""
        server, http = self._server, self._http
        self._server = self._http = None
        if server is None or http is None:
            return
        server.close()
        await asyncio.sleep(0)  # a connection accepted in this very moment becomes known
        while http.connections:
            for connection in http.connections:
                if connection.transport is not None:
                    connection.transport.abort()
            await asyncio.sleep(0)
        await server.wait_closed()

    async def release(self) -> None:
        """Close for good and give the port back."""
        await self.close()
        self._reserved.close()


def _bind(host: str, port: int, setting: str) -> socket.socket:
    """A bound socket that does not listen yet: SO_REUSEADDR lets a second one be bound to listen."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno not in (EADDRINUSE, EACCES):
            raise ConfigError(
                f"simulator.host = {host!r}: {error.strerror}: give an IPv4 address of this machine, "
                "such as 127.0.0.1"
            ) from None
        raise _taken(port, setting, error) from None
    return bound


def _taken(port: int, setting: str, error: OSError) -> OrchestratorError:
    if error.errno == EADDRINUSE:
        return PortTaken(port, setting, "is taken by another program")
    if error.errno == EACCES:
        return PortTaken(port, setting, "needs more rights")
    return PortTaken(port, setting, f"can't be listened on ({error.strerror})")
