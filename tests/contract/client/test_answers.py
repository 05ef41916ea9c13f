"""What our HTTP client makes of answers, whatever way their bytes are cut and wherever they end."""

from __future__ import annotations

import asyncio

import pytest

from shared.backends.errors import BackendError, Broken, Interrupted
from shared.backends.http import HttpClient
from shared.backends.response import Response
from tests.kit.faulty_server import End, faulty_server

OK = b"HTTP/1.1 200 OK\r\n"
LONG = b"x" * 70_000


async def asked(client: HttpClient, url: str, idle_timeout_s: float = 10.0) -> tuple[int, str, bytes]:
    """Status, reason and body of an answer that is read to its end."""
    response = await client.post(url, b"{}", {}, connect_timeout_s=2.0, idle_timeout_s=idle_timeout_s)
    try:
        body = b""
        while piece := await response.readany():
            body += piece
        assert response.at_eof
        return response.status, response.reason, body
    finally:
        response.close()


@pytest.mark.parametrize("single", [False, True], ids=["whole", "in single bytes"])
@pytest.mark.parametrize(
    ("answer", "end", "expected"),
    [
        pytest.param(OK + b"Content-Length: 3\r\n\r\nabc", "hang", (200, "OK", b"abc"), id="length"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\n", "hang", (200, "OK", b""), id="empty"),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nTrailer: 1\r\n\r\n",
            "hang",
            (200, "OK", b"abc"),
            id="chunked, with an extension and a trailer",
        ),
        pytest.param(OK + b"\r\nabc", "close", (200, "OK", b"abc"), id="until the end"),
        pytest.param(OK + b"\r\n", "close", (200, "OK", b""), id="nothing until the end"),
        pytest.param(
            b"HTTP/1.0 200 Fine, thanks\r\nContent-Length: 3\r\n\r\nabc",
            "hang",
            (200, "Fine, thanks", b"abc"),
            id="HTTP/1.0",
        ),
        pytest.param(b"HTTP/1.1 204 Nothing\r\n\r\n", "hang", (204, "Nothing", b""), id="204"),
        pytest.param(b"HTTP/1.1 304\r\nContent-Length: 9\r\n\r\n", "hang", (304, "", b""), id="304"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: <a>\r\n\r\n"
            + OK
            + b"Content-Length: 3\r\n\r\nabc",
            "hang",
            (200, "OK", b"abc"),
            id="after interim answers",
        ),
    ],
)
async def test_a_complete_answer_is_read_to_its_end(
    client: HttpClient, answer: bytes, end: End, expected: tuple[int, str, bytes], single: bool
) -> None:
    pieces = [bytes([byte]) for byte in answer] if single else [answer]
    async with faulty_server(*pieces, end=end) as server:
        assert await asked(client, server.url) == expected


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(b"HTTP/1.1 500 Oops\r\nContent-Length: 1\r\n\r\nx" * 2, id="other answers"),
        pytest.param(b"HTTP/1", id="half an answer"),
        pytest.param(b"\0\0garbage", id="garbage"),
    ],
)
@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["kept", "closing"])
async def test_bytes_behind_an_answer_are_no_part_of_it(
    client: HttpClient, behind: bytes, closing: bytes
) -> None:
    answer = OK + closing + b"Content-Length: 3\r\n\r\nabc"
    async with faulty_server(answer + behind, end="hang") as server:
        assert await asked(client, server.url) == (200, "OK", b"abc")


@pytest.mark.parametrize(
    ("pieces", "end"),
    [
        pytest.param([], "close", id="nothing"),
        pytest.param([], "reset", id="nothing but a reset"),
        pytest.param([b"HTTP/1.1 2"], "close", id="half a status"),
        pytest.param([OK + b"Content-Le"], "close", id="half a head"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n"], "close", id="an interim answer alone"),
        pytest.param([OK + b"Content-Length: 4\r\n\r\nabc"], "close", id="short of its length"),
        pytest.param([OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"], "close", id="no last chunk"),
        pytest.param(
            [OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"], "close", id="half a last chunk"
        ),
        pytest.param([OK + b"\r\n", b"abc"], "reset", id="until a reset"),
    ],
)
async def test_an_end_before_the_end_is_an_interruption(
    client: HttpClient, pieces: list[bytes], end: End
) -> None:
    async with faulty_server(*pieces, end=end) as server:
        with pytest.raises(Interrupted) as caught:
            await asked(client, server.url)

    assert caught.value.type == "backend_interrupted"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(OK + b"Content-Length: x\r\n\r\n", id="no number"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="no chunk"),
        pytest.param(
            OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="two lengths"
        ),
        pytest.param(OK + b"X: " + LONG, id="a header without end"),
        pytest.param((b"HTTP/1.1 102 Wait\r\n\r\n" * 4000), id="interim answers without end"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + LONG, id="a trailer without end"),
        pytest.param(
            b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", id="another protocol from here"
        ),
    ],
)
async def test_what_is_no_answer_is_a_broken_backend(client: HttpClient, answer: bytes) -> None:
    async with faulty_server(answer, end="hang") as server:
        with pytest.raises(Broken):
            await asked(client, server.url)
        await asyncio.wait_for(server.left.wait(), 30.0)


async def test_what_came_before_it_broke_off_is_read_first(client: HttpClient) -> None:
    read = b""

    async def read_on(response: Response) -> None:
        nonlocal read
        while piece := await response.readany():
            read += piece

    async with faulty_server(OK + b"Content-Length: 9\r\n\r\nabc", b"def", end="close") as server:
        response = await client.post(server.url, b"{}", {}, connect_timeout_s=2.0, idle_timeout_s=9.0)
        with pytest.raises(Interrupted):
            await read_on(response)
        response.close()

    assert read == b"abcdef"


@pytest.mark.parametrize(
    ("sent", "content_type"),
    [
        (b"content-type: Text/Event-Stream ; charset=utf-8", "text/event-stream"),
        (b"CONTENT-TYPE:application/json", "application/json"),
        (b"X: y", ""),
        (b"Content-Type: a/b\r\nContent-Type: c/d", "a/b"),
        (b"Content-Type: caf\xc3\xa9/\xff", "caf\xe9/\udcff"),
    ],
)
async def test_headers_are_found_however_they_are_written(
    client: HttpClient, sent: bytes, content_type: str
) -> None:
    async with faulty_server(OK + sent + b"\r\nRetry-After:  7 \r\nContent-Length: 0\r\n\r\n") as server:
        response = await client.post(server.url, b"{}", {}, connect_timeout_s=2.0, idle_timeout_s=9.0)
        response.close()

    assert (response.content_type, response.header("retry-AFTER")) == (content_type, "7")
    assert response.header("Location") is None


@pytest.mark.parametrize("pieces", [[], [OK + b"\r\n"], [OK + b"\r\nabc"]], ids=["none", "headers", "body"])
async def test_silence_is_told_and_ends_the_connection(client: HttpClient, pieces: list[bytes]) -> None:
    async with faulty_server(*pieces, end="hang") as server:
        with pytest.raises(BackendError) as caught:
            await asked(client, server.url, idle_timeout_s=0.2)
        await asyncio.wait_for(server.left.wait(), 30.0)

    assert caught.value.type == "backend_timeout"
