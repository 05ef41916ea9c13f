"""A server that answers any bytes and then behaves as badly as asked."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["close", "reset", "hang"]

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
"""Head of a stream whose end is the end of the connection."""


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came in."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class FaultyServer:
    """What a test knows of the running server; ``left`` is set when a client has closed its connection."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)


def answer(status: str, body: bytes, **headers: str) -> bytes:
    """A complete HTTP answer, such as ``answer("400 Bad Request", b"...", Retry_After="7")``."""
    fields = {"Content-Type": "application/json", "Connection": "close", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


@asynccontextmanager
async def faulty_server(*pieces: bytes, end: End = "close") -> AsyncIterator[FaultyServer]:
    """Answer every request with ``pieces``, each in a segment of its own, then end as ``end`` says."""
    server = FaultyServer()
    clients: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients[asyncio.current_task()] = writer
        try:
            server.requests.append(await _read_request(reader))
            await _write(writer, pieces)
            if end == "hang":
                await reader.read()
                server.left.set()
            elif end == "reset":
                _reset_on_close(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            server.left.set()
        finally:
            del clients[asyncio.current_task()]
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        left = dict(clients)
        for writer in left.values():
            writer.transport.abort()
        await asyncio.gather(*(task for task in left if task is not None))
        await listening.wait_closed()


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    return Received(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _write(writer: asyncio.StreamWriter, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.002)  # lets the segment arrive alone


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Closing sends a reset instead of an end."""
    raw = writer.get_extra_info("socket")
    assert raw is not None
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
