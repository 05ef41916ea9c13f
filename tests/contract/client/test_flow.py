"""Large bodies, slow readers on either side, and what counts as silence."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.backends.errors import Interrupted
from shared.backends.http import HttpClient
from shared.backends.response import Response
from tests.kit.scripted_server import Talk, scripted_server
from tests.kit.waiting import wait_until

OK = b"HTTP/1.1 200 OK\r\n"
MIB = 2**20
PATIENCE_S = 0.5


async def post(client: HttpClient, url: str, body: bytes, idle_timeout_s: float = 10.0) -> Response:
    return await client.post(url, body, {}, connect_timeout_s=5.0, idle_timeout_s=idle_timeout_s)


async def test_a_large_body_arrives_whole_while_others_are_served(client: HttpClient) -> None:
    body = bytes(range(256)) * (24 * MIB // 256)
    read_on = asyncio.Event()

    async def play(talk: Talk) -> None:
        if talk.nth == 0:
            await read_on.wait()
        received = await talk.request()
        await talk.say(OK + b"Content-Length: 3\r\n\r\n" + (b"yes" if received.body == body else b"no!"))

    async with scripted_server(play) as server:
        large = asyncio.create_task(post(client, server.url, body))
        await wait_until(lambda: server.talks, "it is connected")
        response = await post(client, server.url, b"{}")
        assert await response.readany() == b"no!"
        response.close()
        assert not large.done()
        read_on.set()
        response = await large
        assert await response.readany() == b"yes"
        response.close()


async def test_a_backend_that_takes_no_more_of_a_body_is_silent(client: HttpClient) -> None:
    async def play(_talk: Talk) -> None:
        await asyncio.Event().wait()

    async with scripted_server(play) as server:
        with pytest.raises(Interrupted) as caught:
            await post(client, server.url, bytes(64 * MIB), PATIENCE_S)

    assert caught.value.type == "backend_timeout"


async def test_a_backend_that_takes_a_body_slowly_is_not_silent(client: HttpClient) -> None:
    async def play(talk: Talk) -> None:
        await talk.reader.readuntil(b"\r\n\r\n")
        for _ in range(12):
            await asyncio.sleep(PATIENCE_S / 5)  # the pace of a slow one
            await talk.reader.readexactly(2 * MIB)
        await talk.say(OK + b"Content-Length: 3\r\n\r\nabc")

    async with scripted_server(play) as server:
        response = await post(client, server.url, bytes(24 * MIB), PATIENCE_S)
        assert await response.readany() == b"abc"
        response.close()


@pytest.mark.parametrize("size", [1000, 24 * MIB], ids=["small", "large"])
async def test_an_answer_that_comes_before_the_request_is_sent_whole_is_an_answer(
    client: HttpClient, size: int
) -> None:
    async def play(talk: Talk) -> None:
        await talk.reader.readuntil(b"\r\n\r\n")
        await talk.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nabc")
        await talk.until_gone()

    async with scripted_server(play) as server:
        response = await post(client, server.url, bytes(size))
        assert (response.status, await response.readany()) == (413, b"abc")
        response.close()
        await asyncio.wait_for(server.talks[0].left.wait(), 30.0)


async def test_a_backend_waits_for_a_slow_reader_and_is_not_called_silent_for_it(client: HttpClient) -> None:
    pieces, size, written = 256, 256 * 1024, 0

    async def play(talk: Talk) -> None:
        nonlocal written
        await talk.request()
        await talk.say(OK + b"Content-Length: %d\r\n\r\n" % (pieces * size))
        for _ in range(pieces):
            await talk.say(bytes(size))
            written += size

    async with scripted_server(play) as server:
        response = await post(client, server.url, b"{}", PATIENCE_S)
        seen: list[int] = []
        began = time.monotonic()

        def stuck() -> bool:
            seen.append(written)
            return time.monotonic() - began > 3 * PATIENCE_S and len(set(seen[-5:])) == 1

        await wait_until(stuck, "the backend can write no more, for longer than it may be silent")
        assert 0 < written < pieces * size / 2  # most of it in the kernel's buffers

        total, largest = 0, 0
        while piece := await response.readany():
            total += len(piece)
            largest = max(largest, len(piece))
        response.close()

    assert total == pieces * size
    assert largest < MIB


@contextmanager
def _ticking_server(ticks: int, every_s: float) -> Iterator[str]:
    """A server in a thread of its own that says a byte every so often, whatever our loop does."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % ticks)
            for _ in range(ticks):
                time.sleep(every_s)
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


async def test_a_backend_is_not_silent_because_we_stood_still(client: HttpClient) -> None:
    with _ticking_server(ticks=16, every_s=PATIENCE_S / 5) as url:
        response = await post(client, url, b"{}", PATIENCE_S)
        read = await response.readany()
        time.sleep(2 * PATIENCE_S)  # noqa: ASYNC251 as a machine that was suspended
        while piece := await response.readany():
            read += piece
        response.close()

    assert read == b"x" * 16
