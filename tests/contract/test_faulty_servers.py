"""What no well-behaved server does: answers cut, mangled, silent, or not HTTP at all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from shared.backends.completion import Completion, complete
from shared.backends.errors import BackendError, Broken, Interrupted, Rejected, Saturated
from shared.backends.http import HttpClient
from shared.backends.probe import probe
from shared.states import BackendType, Residence
from tests.kit.backends import call
from tests.kit.faulty_server import SSE_HEAD, answer, faulty_server
from tests.kit.stopwatch import Stopwatch

CHUNK = b'data: {"id":"x","choices":[{"index":0,"text":"caf\xc3\xa9","finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


async def attempt(client: HttpClient, url: str, **changes: Any) -> Completion | BackendError:
    try:
        return await complete(client, call(url, **changes))
    except BackendError as error:
        return error


async def test_the_request_goes_out_streamed_with_model_usage_and_key(client: HttpClient) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
    stream = SSE_HEAD + b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n' + DONE
    async with faulty_server(stream) as server:
        await complete(
            client, call(f"{server.url}/prefix/v1", body, upstream_name="tiny-a", api_key="secret")
        )

    (received,) = server.requests
    assert received.line == "POST /prefix/v1/chat/completions HTTP/1.1"
    assert received.headers["authorization"] == "Bearer secret"
    assert received.json == {
        **body,
        "model": "tiny-a",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_stream_cut_into_single_bytes_is_read_like_a_whole_one(client: HttpClient) -> None:
    stream = b": ping\r\n\r\n" + CHUNK.replace(b"\n", b"\r\n") + END + DONE
    async with faulty_server(SSE_HEAD, *(bytes([byte]) for byte in stream)) as server:
        done = await complete(client, call(server.url))

    assert (done.text, done.finish_reason) == ("café", "stop")


@pytest.mark.parametrize(
    "tail",
    [END + DONE, END, END.rstrip(), END + b"data: [DONE]"],
    ids=["done", "finish reason alone", "finish reason without a blank line", "done without a blank line"],
)
async def test_a_finished_answer_may_end_in_any_of_four_ways(client: HttpClient, tail: bytes) -> None:
    async with faulty_server(SSE_HEAD + CHUNK + tail) as server:
        done = await complete(client, call(server.url))

    assert (done.text, done.finish_reason, done.usage, done.output_tokens) == ("café", "stop", None, None)


async def test_a_server_that_never_ends_the_body_after_done_does_not_hold_the_answer(
    client: HttpClient,
) -> None:
    async with faulty_server(SSE_HEAD + CHUNK + END + DONE, end="hang") as server:
        with Stopwatch() as watch:
            done = await complete(client, call(server.url))
            counted_ms = done.total_ms - watch.away_s * 1000
        await asyncio.wait_for(server.left.wait(), 30.0)

    assert done.text == "café"
    assert counted_ms < 2000


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="nothing at all"),
        pytest.param([SSE_HEAD[:20]], id="half a status line"),
        pytest.param([SSE_HEAD], id="headers only"),
        pytest.param([SSE_HEAD + CHUNK], id="no finish reason"),
        pytest.param(
            [SSE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n") + CHUNK], id="short"
        ),
    ],
)
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_an_answer_that_breaks_off_is_an_interruption(
    client: HttpClient, pieces: list[bytes], end: Any
) -> None:
    async with faulty_server(*pieces, end=end) as server:
        error = await attempt(client, server.url)

    assert isinstance(error, Interrupted)
    assert error.type == "backend_interrupted"


@pytest.mark.parametrize("pieces", [[], [SSE_HEAD], [SSE_HEAD + CHUNK]], ids=["none", "headers", "chunk"])
async def test_silence_is_an_interruption_and_closes_the_connection(
    client: HttpClient, pieces: list[bytes]
) -> None:
    async with faulty_server(*pieces, end="hang") as server:
        error = await attempt(client, server.url, idle_timeout_s=0.2)
        await asyncio.wait_for(server.left.wait(), 30.0)

    assert isinstance(error, Interrupted)
    assert error.type == "backend_timeout"


async def test_pings_keep_a_silent_stream_alive(client: HttpClient) -> None:
    pings = [b": ping\n\n"] * 500  # one every 2 ms or more: 1 s at least
    async with faulty_server(SSE_HEAD, *pings, CHUNK + END + DONE) as server:
        done = await complete(client, call(server.url, idle_timeout_s=0.9))

    assert done.text == "café"
    assert done.total_ms > 900


@pytest.mark.parametrize(
    ("reply", "expected", "status", "detail"),
    [
        (answer("500 Oops", b'{"error":{"message":"it broke","code":500}}'), Broken, 500, "it broke"),
        (answer("502 Bad Gateway", b"<html>gate</html>"), Broken, 502, "<html>gate</html>"),
        (answer("400 Bad Request", b'{"error":"too  long"}'), Rejected, 400, "too long"),
        (answer("404 Not Found", b'{"detail":"no such model"}'), Rejected, 404, "no such model"),
        (answer("401 Unauthorized", b""), Rejected, 401, "Unauthorized"),
        (answer("429 Slow Down", b'{"message":"busy"}'), Saturated, 429, "busy"),
        (answer("400 Bad Request", b"x" * 20_000), Rejected, 400, "x" * 499 + "…"),
        (
            answer("307 Moved", b"", Location="http://127.0.0.1/new"),
            Rejected,
            307,
            "redirects to http://127.0.0.1/new: register that address instead",
        ),
    ],
)
async def test_a_refusal_is_told_by_its_status_in_the_backends_words(
    client: HttpClient, reply: bytes, expected: type[BackendError], status: int, detail: str
) -> None:
    async with faulty_server(reply) as server:
        error = await attempt(client, server.url)

    assert isinstance(error, expected)
    assert (error.status, error.detail) == (status, detail)


async def test_a_refusal_whose_words_break_off_still_counts_by_its_status(
    client: HttpClient,
) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 500\r\n\r\n"
    async with faulty_server(head + b"prompt too") as server:
        error = await attempt(client, server.url)

    assert isinstance(error, Rejected)
    assert error.detail == "prompt too"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        (
            {"Retry_After": "Mon, 23 Nov 2026 10:00:30 GMT", "Date": "Mon, 23 Nov 2026 10:00:00 GMT"},
            30.0,
        ),
        ({"Retry_After": "soon"}, None),
        ({}, None),
    ],
)
async def test_503_says_when_to_come_back(
    client: HttpClient, header: dict[str, str], expected: float | None
) -> None:
    async with faulty_server(answer("503 Busy", b"{}", **header)) as server:
        error = await attempt(client, server.url)

    assert isinstance(error, Saturated)
    assert error.retry_after_s == expected


@pytest.mark.parametrize(
    ("event", "expected", "status"),
    [
        ({"error": {"message": "engine died", "code": 500}}, Broken, 500),
        ({"error": {"message": "engine died", "code": "server_error"}}, Broken, None),
        ({"error": {"message": "engine died", "code": 400}}, Rejected, 400),
        ({"error": {"message": "engine died", "code": 503}}, Saturated, 503),
        ({"error": "engine died"}, Broken, None),
    ],
)
async def test_an_error_object_in_a_stream_that_began_well_is_an_error(
    client: HttpClient, event: dict[str, Any], expected: type[BackendError], status: int | None
) -> None:
    stream = SSE_HEAD + CHUNK + b"data: " + json.dumps(event).encode() + b"\n\n" + DONE
    async with faulty_server(stream) as server:
        error = await attempt(client, server.url)

    assert isinstance(error, expected)
    assert (error.status, error.detail) == (status, "engine died")


async def test_the_error_field_of_older_llama_cpp_is_an_error(client: HttpClient) -> None:
    line = b'error: {"code":400,"message":"exceeds the context","type":"invalid_request_error"}\n\n'
    async with faulty_server(SSE_HEAD + line + DONE) as server:
        error = await attempt(client, server.url)

    assert isinstance(error, Rejected)
    assert error.detail == "exceeds the context"


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(SSE_HEAD + b"data: not json\n\n" + DONE, id="an event that is not JSON"),
        pytest.param(SSE_HEAD + b"data: [1]\n\n" + DONE, id="an event that is no object"),
        pytest.param(SSE_HEAD + DONE, id="no choice"),
        pytest.param(SSE_HEAD + b"data: " + b"x" * 200_000, id="an event without end"),
        pytest.param(answer("200 OK", b'{"choices":[]}'), id="no stream"),
        pytest.param(b"220 smtp.example ESMTP\r\n", id="not HTTP"),
    ],
)
async def test_what_is_no_completion_stream_is_a_broken_backend(client: HttpClient, reply: bytes) -> None:
    async with faulty_server(reply, end="hang") as server:
        error = await attempt(client, server.url, max_result_bytes=1000, idle_timeout_s=1.0)

    assert isinstance(error, Broken)
    assert error.type == "backend_error"


@pytest.mark.parametrize("backend", list(BackendType))
@pytest.mark.parametrize(
    ("pieces", "residence", "words"),
    [
        ([], Residence.FAILED, "backend_timeout"),
        ([answer("500 Oops", b"dead")], Residence.FAILED, "backend_error: dead"),
        ([answer("404 Not Found", b"what?")], Residence.FAILED, "backend_rejected: what?"),
        ([b"220 smtp.example ESMTP\r\n"], Residence.FAILED, "backend_error: does not speak HTTP"),
        ([answer("200 OK", b"hello")], Residence.FAILED, "backend_error: answered what is not JSON: hello"),
    ],
    ids=["silent", "broken", "something else", "not HTTP", "not JSON"],
)
async def test_a_probe_reports_a_server_that_fails_and_does_not_raise(
    http: aiohttp.ClientSession, backend: BackendType, pieces: list[bytes], residence: Residence, words: str
) -> None:
    async with faulty_server(*pieces, end="hang") as server:
        seen = await probe(http, server.url, backend, timeout_s=0.3)

    assert (seen.residence, seen.running, seen.props) == (residence, None, None)
    assert seen.error is not None
    assert seen.error.startswith(words)
