"""When our HTTP client opens, keeps and closes connections, and to where."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from pathlib import Path

import pytest

from shared.backends import http
from shared.backends.errors import Interrupted, NotSent
from shared.backends.http import HttpClient
from shared.backends.response import Response
from tests.kit.scripted_server import ScriptedServer, Talk, scripted_server
from tests.kit.waiting import wait_until

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
TIME_WAIT = "06"


async def post(client: HttpClient, url: str, *, keep: bool = False, patience_s: float = 5.0) -> Response:
    return await client.post(url, b"{}", {}, connect_timeout_s=patience_s, idle_timeout_s=10.0, keep=keep)


async def ask(client: HttpClient, url: str, *, keep: bool = False) -> bytes:
    """The whole body."""
    response = await post(client, url, keep=keep)
    try:
        body = b""
        while piece := await response.readany():
            body += piece
        return body
    finally:
        response.close()


async def polite(talk: Talk) -> None:
    """Answers as long as it is asked."""
    while True:
        received = await talk.request()
        await talk.say(ANSWER)
        if received.headers.get("connection") == "close":
            return


async def test_every_call_has_a_connection_of_its_own_and_the_server_closes_it_first(
    client: HttpClient,
) -> None:
    async with scripted_server(polite) as server:
        assert [await ask(client, server.url) for _ in range(3)] == [b"abc"] * 3
        assert [len(talk.requests) for talk in server.talks] == [1, 1, 1]

        def waiting() -> int:
            return len(_sockets(server.port, TIME_WAIT, local=True))

        await wait_until(lambda: waiting() == 3, "the server's side keeps its ports busy")
        assert _sockets(server.port, TIME_WAIT, local=False) == []


async def test_a_server_that_does_not_close_is_left_soon(client: HttpClient) -> None:
    async def stay(talk: Talk) -> None:
        await talk.request()
        await talk.say(ANSWER)
        await talk.until_gone()

    async with scripted_server(stay) as server:
        assert await ask(client, server.url) == b"abc"
        await asyncio.wait_for(server.talks[0].left.wait(), 30.0)


async def test_a_kept_connection_carries_one_call_after_the_other(client: HttpClient) -> None:
    async with scripted_server(polite) as server:
        assert [await ask(client, server.url, keep=True) for _ in range(3)] == [b"abc"] * 3
        assert await ask(client, server.url) == b"abc"
        assert [len(talk.requests) for talk in server.talks] == [3, 1]
        assert "connection" not in server.talks[0].requests[0].headers


async def test_calls_at_the_same_time_never_share_a_kept_connection(client: HttpClient) -> None:
    async with scripted_server(polite) as server:
        for _ in range(2):
            assert (
                await asyncio.gather(*(ask(client, server.url, keep=True) for _ in range(5))) == [b"abc"] * 5
            )
        assert [len(talk.requests) for talk in server.talks] == [2] * 5


async def test_an_idle_connection_is_closed_after_a_while(client: HttpClient) -> None:
    async def stay(talk: Talk) -> None:
        await talk.request()
        await talk.say(ANSWER)
        await talk.until_gone()

    async with scripted_server(stay) as server:
        await ask(client, server.url, keep=True)
        await asyncio.wait_for(server.talks[0].left.wait(), 30.0)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(ANSWER.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), id="said to be the last"),
        pytest.param(ANSWER.replace(b"1.1", b"1.0"), id="HTTP/1.0"),
        pytest.param(ANSWER + b"HTTP/1.1 200 OK\r\n", id="bytes of another answer"),
        pytest.param(ANSWER + b"\0", id="stray bytes"),
    ],
)
async def test_what_cannot_be_kept_is_not(client: HttpClient, said: bytes) -> None:
    async def play(talk: Talk) -> None:
        await talk.request()
        await talk.say(said)
        await talk.until_gone()

    async with scripted_server(play) as server:
        assert [await ask(client, server.url, keep=True) for _ in range(2)] == [b"abc"] * 2
        assert [len(talk.requests) for talk in server.talks] == [1, 1]


@pytest.mark.parametrize("how", ["close", "bytes"])
async def test_an_idle_connection_that_is_not_idle_any_more_is_dropped(client: HttpClient, how: str) -> None:
    spoil = asyncio.Event()

    async def play(talk: Talk) -> None:
        await talk.request()
        await talk.say(ANSWER)
        if talk.nth == 0:
            await spoil.wait()
            if how == "bytes":
                await talk.say(ANSWER)
                await talk.until_gone()
            talk.left.set()

    async with scripted_server(play) as server:
        await ask(client, server.url, keep=True)
        spoil.set()
        await asyncio.wait_for(server.talks[0].left.wait(), 30.0)
        assert await ask(client, server.url, keep=True) == b"abc"
        assert len(server.talks) == 2


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("heard", [b"", b"HTTP/1.1 2"], ids=["nothing", "half a status"])
async def test_a_kept_connection_that_breaks_before_the_first_byte_is_replaced_once(
    client: HttpClient, heard: bytes, reset: bool
) -> None:
    async def play(talk: Talk) -> None:
        for nth in range(2):
            await talk.request()
            if nth == 0 and talk.nth == 0:
                await talk.say(ANSWER)
                continue
            if talk.nth == 0:
                await talk.say(heard)
            if reset:
                talk.reset_at_close()
            return

    async with scripted_server(play) as server:
        await ask(client, server.url, keep=True)
        with pytest.raises(Interrupted) as caught:
            await ask(client, server.url, keep=True)
        # The new connection broke, too, and that is that.
        assert [len(talk.requests) for talk in server.talks] == ([2] if heard else [2, 1])
        assert caught.value.type == "backend_interrupted"


async def test_leaving_before_the_end_closes_at_once(client: HttpClient) -> None:
    async def play(talk: Talk) -> None:
        await talk.request()
        await talk.say(ANSWER.replace(b"3", b"9"))
        await talk.until_gone()

    async with scripted_server(play) as server:
        response = await post(client, server.url, keep=True)
        assert await response.readany() == b"abc"
        response.close()
        await asyncio.wait_for(server.talks[0].left.wait(), 30.0)
        with pytest.raises(Interrupted):
            await response.readany()


@pytest.mark.parametrize("said", [b"", ANSWER.replace(b"3", b"9")], ids=["no headers", "half a body"])
async def test_cancelling_closes_at_once(client: HttpClient, said: bytes) -> None:
    async def play(talk: Talk) -> None:
        await talk.request()
        await talk.say(said)
        await talk.until_gone()

    async with scripted_server(play) as server:
        task = asyncio.create_task(ask(client, server.url))
        await wait_until(lambda: server.talks and server.talks[0].requests, "the request is there")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.talks[0].left.wait(), 30.0)


async def test_settling_reads_a_complete_answers_end_for_the_next_call(client: HttpClient) -> None:
    async def play(talk: Talk) -> None:
        await talk.request()
        await talk.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n[DONE]\r\n")
        await more.wait()
        await talk.say(b"0\r\n\r\n")
        await polite(talk)

    more = asyncio.Event()
    async with scripted_server(play) as server:
        response = await post(client, server.url, keep=True)
        assert await response.readany() == b"[DONE]"
        response.settle()
        response.close()
        more.set()
        await wait_until(lambda: response.at_eof, "its end is read")
        assert await ask(client, server.url, keep=True) == b"abc"
        assert len(server.talks) == 1


@contextmanager
def full_server() -> Iterator[int]:
    """The port of a server that takes no connection any more, and does not say so."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port: int = server.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for one in waiting:
                one.close()


@pytest.mark.parametrize("named", [False, True], ids=["address", "name"])
async def test_a_connection_that_does_not_come_about_is_given_up_in_time(named: bool) -> None:
    async def lookup(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1", "127.0.0.1"]

    with full_server() as port:
        async with aclosing(HttpClient(lookup)) as client:
            url = f"http://{'gpu-box' if named else '127.0.0.1'}:{port}"
            with pytest.raises(NotSent) as caught:
                await post(client, url, patience_s=0.2)

    assert caught.value.type == "connect_timeout"


async def test_cancelling_while_it_connects_leaves_no_socket(client: HttpClient) -> None:
    with full_server() as port:
        before = _open_sockets()
        task = asyncio.create_task(post(client, f"http://127.0.0.1:{port}"))
        await wait_until(lambda: _open_sockets() > before, "it has a socket")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until(lambda: _open_sockets() == before, "its socket is gone")


async def test_a_name_is_looked_up_once_and_its_good_address_is_tried_first() -> None:
    lookups: list[str] = []

    async def lookup(host: str, _port: int) -> list[str]:
        lookups.append(host)
        return ["127.0.0.2", "127.0.0.1"]

    async with scripted_server(polite) as server, aclosing(HttpClient(lookup)) as client:
        url = f"http://gpu-box:{server.port}"
        assert await asyncio.gather(*(ask(client, url) for _ in range(5))) == [b"abc"] * 5
        assert await client._names.addresses("gpu-box", server.port) == ["127.0.0.1", "127.0.0.2"]
        assert await ask(client, url) == b"abc"
        assert server.talks[0].requests[0].headers["host"] == f"gpu-box:{server.port}"

    assert lookups == ["gpu-box"]


async def test_a_name_whose_addresses_all_fail_is_looked_up_again() -> None:
    lookups: list[str] = []

    async def lookup(host: str, _port: int) -> list[str]:
        lookups.append(host)
        return ["127.0.0.1"]

    async with aclosing(HttpClient(lookup)) as client:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        for _ in range(2):
            with pytest.raises(NotSent) as caught:
                await ask(client, f"http://gpu-box:{port}")
            assert caught.value.type == "connect_refused"

    assert len(lookups) == 2


async def test_an_ipv6_address_is_an_address(client: HttpClient) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        async with scripted_server(polite, "::1") as server:
            assert await ask(client, server.url) == b"abc"
            assert server.talks[0].requests[0].headers["host"] == f"[::1]:{server.port}"
    except OSError:
        pytest.skip("no IPv6 here")


async def test_closing_the_client_interrupts_what_is_under_way() -> None:
    async with scripted_server(Talk.until_gone) as server:
        client = HttpClient()
        task = asyncio.create_task(ask(client, server.url))
        await wait_until(lambda: server.talks, "it is connected")
        await client.aclose()
        with pytest.raises(Interrupted):
            await task
        with pytest.raises(NotSent):
            await ask(client, server.url)
        await asyncio.wait_for(server.talks[-1].left.wait(), 30.0)


async def test_tls_is_spoken_with_a_server_whose_certificate_is_known(
    client: HttpClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _tls_server(tmp_path) as server:
        http._tls.cache_clear()
        with pytest.raises(NotSent) as caught:
            await ask(client, server.url)
        assert caught.value.type == "tls_failed"

        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        http._tls.cache_clear()
        assert [await ask(client, server.url, keep=True) for _ in range(2)] == [b"abc"] * 2
        assert [len(talk.requests) for talk in server.talks if talk.requests] == [2]
    http._tls.cache_clear()


def _tls_server(directory: Path) -> AbstractAsyncContextManager[ScriptedServer]:
    key, cert = str(directory / "key.pem"), str(directory / "cert.pem")
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(["openssl", *words, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return scripted_server(polite, tls=context)


def _sockets(port: int, state: str, *, local: bool) -> list[str]:
    """The kernel's IPv4 connections in this state from (or to) this port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    wanted = f":{port:04X}"
    return [
        line
        for line in lines
        if line.split()[1 if local else 2].endswith(wanted) and line.split()[3] == state
    ]


def _open_sockets() -> int:
    files = Path("/proc/self/fd")
    return sum(os.path.islink(file) and os.readlink(file).startswith("socket:") for file in files.iterdir())
