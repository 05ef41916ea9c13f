"""A server each of whose connections is played by a function of the test, byte by byte."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.kit.faulty_server import Received


@dataclass(eq=False, slots=True)
class Talk:
    """One connection, seen from the server. ``nth`` counts from 0."""

    nth: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[Received] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self) -> Received:
        """The next request, read whole."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        received = Received(line, headers, body)
        self.requests.append(received)
        return received

    async def say(self, *pieces: bytes) -> None:
        """Send these bytes, each piece in a segment of its own as far as the kernel lets us."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def until_gone(self) -> None:
        """Wait until the client has closed."""
        try:
            while await self.reader.read(2**16):
                pass
        except ConnectionError:
            pass
        self.left.set()

    def reset_at_close(self) -> None:
        """Closing sends a reset instead of an end."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass(slots=True)
class ScriptedServer:
    url: str
    port: int
    talks: list[Talk]


@asynccontextmanager
async def scripted_server(
    play: Callable[[Talk], Awaitable[object]], host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    """Play every connection with ``play``; it is closed when that returns."""
    talks: list[Talk] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(len(talks), reader, writer)
        talks.append(talk)
        try:
            await play(talk)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            talk.left.set()
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(connected, host, 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    try:
        yield ScriptedServer(f"{'https' if tls else 'http'}://{shown}:{port}", port, talks)
    finally:
        listening.close()
        for talk in talks:
            talk.writer.transport.abort()
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left)
        await listening.wait_closed()
