"""An HTTP proxy in front of a backend that keeps what clients sent to it, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from tests.kit.faulty_server import Received

_HOP = frozenset({"connection", "content-length", "date", "host", "server", "transfer-encoding"})


@dataclass(slots=True)
class RecordingProxy:
    """Its address, and the POST requests that came to it, oldest first.

    ``stream``: the pieces that the next POST is answered with instead of being passed on. While ``gate`` is
    cleared, POST requests wait; while ``more`` is, such an answer waits after its first piece.
    """

    url: str = ""
    posts: list[Received] = field(default_factory=list)
    stream: tuple[bytes, ...] = ()
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> Received:
        return self.posts[-1]


@asynccontextmanager
async def recording_proxy(upstream: str) -> AsyncIterator[RecordingProxy]:
    """Pass everything to ``upstream`` and back as it comes; a client that leaves is left there, too."""
    proxy = RecordingProxy()
    proxy.gate.set()
    proxy.more.set()

    async def serve(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        if request.method == "POST":
            proxy.posts.append(Received(f"POST {request.path_qs} HTTP/1.1", headers, body))
            await proxy.gate.wait()
            if proxy.stream:
                return await _play(proxy, request)
        onward = {name: value for name, value in headers.items() if name not in _HOP}
        async with session.request(
            request.method, upstream + request.path_qs, data=body or None, headers=onward
        ) as got:
            kept = {name: value for name, value in got.headers.items() if name.lower() not in _HOP}
            answer = web.StreamResponse(status=got.status, headers=kept)
            await answer.prepare(request)
            with suppress(ConnectionResetError):  # the client has left
                async for piece in got.content.iter_any():
                    await answer.write(piece)
                await answer.write_eof()
            return answer

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        try:
            await site.start()
            host, port = runner.addresses[0][:2]
            proxy.url = f"http://{host}:{port}"
            yield proxy
        finally:
            await runner.cleanup()
            await asyncio.sleep(0)  # the session's connections close in callbacks


async def _play(proxy: RecordingProxy, request: web.Request) -> web.StreamResponse:
    pieces, proxy.stream = proxy.stream, ()
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for piece in pieces:
        await answer.write(piece)
        await proxy.more.wait()
    await answer.write_eof()
    return answer
