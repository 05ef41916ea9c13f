"""A TCP proxy between a client and Redis that counts commands and spoils the one that it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from enum import Enum
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 65_536
_HOST = "127.0.0.1"


class Fault(Enum):
    CUT = "cut"
    """The connection breaks before the server sees the command."""
    DROP_REPLY = "drop_reply"
    """The server runs the command, then the connection breaks before its reply."""
    STALL = "stall"
    """The command is held back until the client has given up on the connection, and then runs."""
    BLACKHOLE = "blackhole"
    """From here on nothing passes on this connection, in either direction, and nobody closes it."""
    HOLD = "hold"
    """The command waits until ``release`` is called; nothing is lost."""


class FaultProxy:
    """Forwards to the Redis at ``upstream``; its own address is ``url``. Use as an async context manager.

    ``commands`` are the names of all commands seen, in order, the handshake's included.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or _HOST, parts.port or 6379)
        self._path = parts.path
        self.commands: list[str] = []
        self.held = asyncio.Event()
        """Set while a command is held by ``HOLD``."""
        self._released = asyncio.Event()
        self._fault: Fault | None = None
        self._at = 0
        self._name = ""
        self._times = 0
        self._swap = (b"", b"")
        self._links = set[asyncio.Task[None]]()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, _HOST, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://{_HOST}:{port}{self._path}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.release()
        # A stalled command still has to reach the server: its link ends by itself once its client is gone.
        if self._links:
            late = (await asyncio.wait(self._links, timeout=30.0))[1]
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            assert not late, "a client of the proxy was left open"
        await self._server.wait_closed()

    @property
    def links(self) -> int:
        """How many clients are connected."""
        return len(self._links)

    def spoil(self, fault: Fault, *, at: int = 0, name: str = "", times: int = 1) -> None:
        """Spoil the ``at``-th command from the very first one, or the next ``times`` named ``name``."""
        self._fault, self._at, self._name, self._times = fault, at, name.upper(), times
        self.held.clear()
        self._released.clear()

    def replace(self, text: bytes, by: bytes) -> None:
        """Change this in every reply from now on; both must have the same length."""
        assert len(text) == len(by)
        self._swap = (text, by)

    def release(self) -> None:
        """Let the held command through."""
        self._released.set()

    @property
    def spoiled(self) -> bool:
        """Whether the fault has struck as often as it was told to."""
        return self._times == 0

    def fault_for(self, name: str) -> Fault | None:
        """Count a command; the fault that strikes it."""
        self.commands.append(name)
        if self._times == 0 or self._fault is None:
            return None
        if name != self._name and len(self.commands) != self._at:
            return None
        self._times -= 1
        return self._fault

    async def hold(self) -> None:
        self.held.set()
        await self._released.wait()

    def changed(self, data: bytes) -> bytes:
        return data.replace(*self._swap) if self._swap[0] else data

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._upstream)
            await _Link(self, reader, writer, server_reader, server_writer).run()
        except ConnectionError:
            writer.close()
        finally:
            self._links.discard(task)


class _Link:
    """One client connection and its connection to the server."""

    def __init__(
        self,
        proxy: FaultProxy,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client_reader, self._client_writer = client_reader, client_writer
        self._server_reader, self._server_writer = server_reader, server_writer
        self._muted = False
        self._replied = asyncio.Event()

    async def run(self) -> None:
        replies = asyncio.create_task(self._replies())
        try:
            await self._commands()
        finally:
            replies.cancel()
            await asyncio.gather(replies, return_exceptions=True)
            for writer in (self._client_writer, self._server_writer):
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def _replies(self) -> None:
        while data := await self._server_reader.read(_CHUNK):
            self._replied.set()
            if not self._muted:
                self._client_writer.write(self._proxy.changed(data))
                await self._client_writer.drain()
        # The server is gone: the client must notice, else it would wait for a reply.
        self._replied.set()
        self._client_writer.close()

    async def _commands(self) -> None:
        buffer = bytearray()
        with contextlib.suppress(ConnectionError):
            while data := await self._client_reader.read(_CHUNK):
                buffer += data
                for command in take_commands(buffer):
                    if not await self._pass(command):
                        return

    async def _pass(self, command: bytes) -> bool:
        """Forward a command as its fault allows; False once the connection is over."""
        fault = self._proxy.fault_for(name_of(command))
        match fault:
            case None:
                await self._forward(command)
                return True
            case Fault.HOLD:
                await self._proxy.hold()
                await self._forward(command)
                return True
            case Fault.DROP_REPLY:
                await self._run_unheard(command)
            case Fault.STALL:
                await self._client_gone()
                await self._run_unheard(command)
            case Fault.BLACKHOLE:
                self._muted = True
                await self._client_gone()
            case Fault.CUT:
                pass
        return False

    async def _forward(self, command: bytes) -> None:
        self._server_writer.write(command)
        await self._server_writer.drain()

    async def _run_unheard(self, command: bytes) -> None:
        self._muted = True
        self._replied.clear()
        await self._forward(command)
        await self._replied.wait()

    async def _client_gone(self) -> None:
        while await self._client_reader.read(_CHUNK):
            pass


def take_commands(buffer: bytearray) -> Iterator[bytes]:
    """Take the complete commands off the front of what a client sent; a part of one stays."""
    while (end := _command_end(buffer)) is not None:
        command = bytes(buffer[:end])
        del buffer[:end]
        yield command


def name_of(command: bytes) -> str:
    """The first word of a command, in capitals."""
    return command.split(b"\r\n", 3)[2].decode("ascii", "replace").upper()


def _command_end(buffer: bytearray) -> int | None:
    """Where the first command ends: an array of bulk strings, ``*<n>`` then n times ``$<length> <bytes>``."""
    end = buffer.find(b"\r\n")
    if end < 0:
        return None
    position = end + 2
    for _ in range(int(buffer[1:end])):
        end = buffer.find(b"\r\n", position)
        if end < 0:
            return None
        position = end + 2 + int(buffer[position + 1 : end]) + 2
    return position if position <= len(buffer) else None
