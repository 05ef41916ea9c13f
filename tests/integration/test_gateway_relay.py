"""Answers of backends on their way to clients of the OpenAI-compatible calls; what becomes of their jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.backends.request import headers
from shared.store.records import JobRecord
from tests.kit.faulty_server import SSE_HEAD, answer, faulty_server
from tests.kit.gateway import CHAT, STREAM, desk
from tests.kit.store_fixture import Store

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}


def chunk(content: str = "", *, model: str = "alpha", finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    body = {"id": "c1", "model": model, "choices": [choice], **more}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


WORDS = (chunk("hello"), chunk(" world"), chunk(finish="stop", usage=USAGE), DONE)
ERROR = b'data: {"error":{"message":"the engine died","type":"server_error","code":500}}\n\n'


def errors_in(text: str) -> list[Any]:
    """The error objects that a stream told."""
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [said["error"] for said in map(json.loads, events) if "error" in said]


async def test_a_stream_reaches_the_client_byte_for_byte_and_leaves_a_succeeded_job(
    store: Store, tmp_path: Path
) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *WORDS) as backend:
        asked = api.asks({**STREAM, "top_k": 7, "new_option": {"deep": [1, None]}})
        job_id = await api.grant(backend.url)
        got = await asked
        result, job = await api.result(job_id), await api.ended(job_id)

    assert (got.status, got.text.encode()) == (200, b"".join(WORDS))
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert got.headers["x-orchestrator-job-id"] == job_id
    assert got.headers["x-orchestrator-model"] == "alpha"
    assert got.headers["x-orchestrator-backend"] == "llama_cpp"
    assert got.headers["x-orchestrator-reason"] == "it fits ? well"
    assert int(got.headers["x-orchestrator-queue-ms"]) >= 0
    assert float(got.headers["x-orchestrator-overhead-ms"]) >= 0
    assert backend.requests[0].json == {**STREAM, "top_k": 7, "new_option": {"deep": [1, None]}}
    assert (job["state"], float(job["first_token_ms"]) > 0) == ("succeeded", True)
    assert result == {
        "text": None, "finish_reason": None, "usage": USAGE, "response": None, "truncated": False,
    }  # fmt: skip
    assert float((await store.model())["avg_output_tokens"]) == 2


async def test_llama_cpp_streams_for_a_client_that_does_not(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *WORDS) as backend:
        asked = api.asks({**CHAT, "temperature": 0})
        job_id = await api.grant(backend.url)
        got = await asked
        result = await api.result(job_id)

    sent = backend.requests[0].json
    assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})
    assert (sent["temperature"], sent["messages"]) == (0, CHAT["messages"])
    assert got.headers["content-type"] == "application/json"
    assert got.body["choices"][0]["message"] == {"role": "assistant", "content": "hello world"}
    assert got.body["usage"] == USAGE
    assert result["text"] is None
    assert result["response"] is None


async def test_a_backend_with_a_content_type_of_stray_bytes_is_passed_on(
    store: Store, tmp_path: Path
) -> None:
    stray = (
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b; x=\xff\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    async with desk(store, tmp_path) as api, faulty_server(stray) as backend:
        asked = api.asks(CHAT)
        job_id = await api.grant(backend.url, backend="vllm")
        got = await asked

        assert (await api.ended(job_id))["state"] == "succeeded"
    assert (got.status, got.text, got.headers["content-type"]) == (200, "{}", "a/b; x=?")


async def test_vllm_answers_as_it_was_asked(store: Store, tmp_path: Path) -> None:
    body = {"id": "c1", "model": "alpha", "choices": [], "usage": USAGE}
    whole = answer("200 OK", json.dumps(body).encode())
    async with desk(store, tmp_path) as api, faulty_server(whole) as backend:
        asked = api.asks(CHAT)
        job_id = await api.grant(backend.url, backend="vllm")
        got = await asked
        result = await api.result(job_id)

    assert (got.status, got.body) == (200, body)
    assert backend.requests[0].json == CHAT
    assert result["usage"] == USAGE


@pytest.mark.parametrize("spaced", [False, True])
async def test_the_public_name_replaces_the_backends_wherever_the_bytes_were_cut(
    store: Store, tmp_path: Path, *, spaced: bool
) -> None:
    stream = b"".join(
        (chunk('say "model":"up/stream"', model="up/stream"), chunk(finish="stop", model="up/stream"), DONE)
    )
    if spaced:
        stream = stream.replace(b'"model":"up', b'"model": "up')
    cuts = [stream[at : at + 7] for at in range(0, len(stream), 7)]
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *cuts) as backend:
        asked = api.asks({**STREAM, "model": "auto"})
        await api.grant(backend.url, upstream_name="up/stream")
        got = await asked

    assert backend.requests[0].json["model"] == "up/stream"
    events = [json.loads(line[6:]) for line in got.text.splitlines() if line.startswith("data: {")]
    assert [event["model"] for event in events] == ["alpha", "alpha"]
    assert events[0]["choices"][0]["delta"]["content"] == 'say "model":"up/stream"'


async def test_a_named_model_keeps_the_name_that_the_client_asked_for(store: Store, tmp_path: Path) -> None:
    models = [{"name": "reg", "port": 1, "serves": ["first", "second"], "agent_types": ["Chat"]}]
    stream = (SSE_HEAD, chunk("hi", model="up"), chunk(finish="stop", model="up"), DONE)
    async with desk(store, tmp_path, models=models) as api, faulty_server(*stream) as backend:
        for name, public in (("second", "second"), ("auto", "first")):
            asked = api.asks({**CHAT, "model": name})
            job_id = await api.grant(backend.url, model="reg", upstream_name="up")
            assert (await asked).body["model"] == public
            await api.ended(job_id)


async def test_a_refused_connection_is_tried_elsewhere_before_the_client_hears_of_it(
    store: Store, tmp_path: Path
) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *WORDS) as backend:
        asked = api.asks(STREAM)
        first = await api.grant("http://127.0.0.1:1")
        second = await api.grant(backend.url, model="beta")
        got = await asked
        job = await api.ended(first)

    assert first == second
    assert got.headers["x-orchestrator-model"] == "beta"
    assert got.text.encode() == b"".join(WORDS)
    assert (job["state"], job["attempt"], job["tries"]) == ("succeeded", "2", "0")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_that_a_stream_begins_with_is_tried_again(
    store: Store, tmp_path: Path, *, stream: bool
) -> None:
    config: Any = {"router": {"retry_base_s": 0.001}}
    async with (
        desk(store, tmp_path, **config) as api,
        faulty_server(SSE_HEAD, ERROR, DONE) as broken,
        faulty_server(SSE_HEAD, *WORDS) as backend,
    ):
        asked = api.asks({**CHAT, "stream": stream})
        job_id = await api.grant(broken.url)
        await api.grant(backend.url)
        got = await asked
        job = await api.ended(job_id)

    assert (got.status, errors_in(got.text)) == (200, [])
    assert (job["state"], job["tries"]) == ("succeeded", "1")


async def test_a_ping_before_the_first_word_does_not_bind_the_client_to_a_backend(
    store: Store, tmp_path: Path
) -> None:
    async with (
        desk(store, tmp_path, router={"retry_base_s": 0.001}) as api,
        faulty_server(SSE_HEAD, b":\n\n") as broken,
        faulty_server(SSE_HEAD, b":\n\n", *WORDS) as backend,
    ):
        asked = api.asks(STREAM)
        await api.grant(broken.url)
        await api.grant(backend.url)
        got = await asked

    assert got.text.encode() == b"".join(WORDS)


async def test_a_backends_own_refusal_reaches_the_client_with_its_status(
    store: Store, tmp_path: Path
) -> None:
    said = (
        b'{"error":{"code":400,"message":"request (3022 tokens) exceeds","type":"exceed_context_size_error"}}'
    )
    for body in (CHAT, STREAM):
        async with desk(store, tmp_path) as api, faulty_server(answer("400 Bad Request", said)) as backend:
            asked = api.asks(body)
            job_id = await api.grant(backend.url)
            got = await asked
            job = await api.ended(job_id)

        assert (got.status, got.text.encode()) == (400, said)
        assert got.headers["x-orchestrator-model"] == "alpha"
        assert (job["state"], job["error_type"]) == ("failed", "backend_rejected")


async def test_a_refusal_that_quotes_our_key_reaches_nobody_with_it(store: Store, tmp_path: Path) -> None:
    key = "plainbackendkey779"
    headers(key)  # as every call with it does
    said = json.dumps({"error": {"message": f"got Bearer {key}, {key}", "code": 400}}).encode()
    async with desk(store, tmp_path) as api, faulty_server(answer("400 Bad Request", said)) as backend:
        asked = api.asks(CHAT)
        job_id = await api.grant(backend.url)
        got = await asked
        job = await api.ended(job_id)

    assert got.status == 400
    assert json.loads(got.text)["error"]["message"] == "got Bearer ***, ***"
    assert job["error_type"] == "backend_rejected"
    assert key not in str(job)


async def test_a_job_whose_tries_are_used_up_is_a_503(store: Store, tmp_path: Path) -> None:
    config: Any = {"jobs": {"max_attempts": 1}}
    broken = answer("500 Internal Server Error", b'{"error":{"message":"no luck"}}')
    async with desk(store, tmp_path, **config) as api, faulty_server(broken) as backend:
        asked = api.asks(CHAT)
        job_id = await api.grant(backend.url)
        got = await asked
        job = await api.ended(job_id)

    assert (got.status, job["state"]) == (503, "dead")
    assert "no luck" in got.body["error"]["message"]
    assert "retry-after" in got.headers


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((chunk("hello"),), id="the connection ends"),
        pytest.param((chunk("hello"), chunk(" wor")[:-9]), id="it ends within an event"),
        pytest.param((chunk("hello"), chunk(finish="abort"), DONE), id="vLLM aborts"),
    ],
)
async def test_an_answer_that_breaks_off_ends_in_an_error_event(
    store: Store, tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *pieces) as backend:
        asked = api.asks(STREAM)
        job_id = await api.grant(backend.url)
        got = await asked
        job = await api.ended(job_id)

    assert got.text.startswith(chunk("hello").decode())
    assert [error["code"] for error in errors_in(got.text)] == ["backend_interrupted"]
    assert got.text.endswith("data: [DONE]\n\n")
    assert (job["state"], job["error_type"], job["tries"]) == ("failed", "backend_interrupted", "1")
    assert (await store.model())["failure_count"] == "1"


async def test_an_error_event_of_the_backend_is_passed_on_and_fails_the_job(
    store: Store, tmp_path: Path
) -> None:
    pieces = (chunk("hello"), ERROR, DONE)
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *pieces) as backend:
        asked = api.asks(STREAM)
        job_id = await api.grant(backend.url)
        got = await asked
        job = await api.ended(job_id)

    assert got.text.encode() == b"".join(pieces)
    assert (job["state"], job["error_detail"]) == ("failed", "the engine died")
    assert (await store.model())["failure_count"] == "1"


_MESSAGES = {
    "model": "alpha",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}
_RESPONSE = {"model": "alpha", "input": "hi", "stream": True}


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/messages", _MESSAGES, b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        (
            "/v1/responses",
            _RESPONSE,
            b'event: response.completed\ndata: {"type":"response.completed","text":"%s"}\n\n'
            % (b"x" * 50_000),
        ),
        ("/v1/responses", _RESPONSE, b'event: response.incomplete\ndata: {"type":"response.incomplete"}\n\n'),
    ],
)
async def test_each_dialect_says_in_its_own_way_that_it_is_complete(
    store: Store, tmp_path: Path, path: str, body: dict[str, Any], last: bytes
) -> None:
    begun = b'event: begun\ndata: {"type":"begun"}\n\n'
    async with desk(store, tmp_path) as api:
        for pieces, state in (((begun, last), "succeeded"), ((begun,), "failed")):
            async with faulty_server(SSE_HEAD, *pieces) as backend:
                asked = api.asks(body, path)
                job_id = await api.grant(backend.url)
                got = await asked
                assert (await api.ended(job_id))["state"] == state
            assert got.text.startswith(b"".join(pieces).decode())
            assert ("event: error\n" in got.text) == (state == "failed")


async def test_a_response_that_failed_is_a_failed_job(store: Store, tmp_path: Path) -> None:
    failed = b'event: response.failed\ndata: {"type":"response.failed","response":{}}\n\n'
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, failed) as backend:
        asked = api.asks(_RESPONSE, "/v1/responses")
        job_id = await api.grant(backend.url)
        got = await asked

        assert (await api.ended(job_id))["state"] == "failed"
    assert got.text.encode() == failed


async def test_embeddings_pass_as_they_are(store: Store, tmp_path: Path) -> None:
    body = {
        "object": "list",
        "data": [{"embedding": [0.25, 1e-9]}],
        "model": "up",
        "usage": {"prompt_tokens": 3},
    }
    async with (
        desk(store, tmp_path) as api,
        faulty_server(answer("200 OK", json.dumps(body).encode())) as backend,
    ):
        asked = api.asks({"model": "alpha", "input": [1, 2, 3]}, "/v1/embeddings")
        job_id = await api.grant(backend.url, upstream_name="up")
        got = await asked
        job = await api.ended(job_id)

    assert got.body == {**body, "model": "alpha"}
    assert job["prompt_tokens"] == "3"
    assert backend.requests[0].line == "POST /v1/embeddings HTTP/1.1"


async def test_a_backend_that_does_not_stream_answers_as_it_can(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api, faulty_server(answer("200 OK", b'{"model":"alpha"}')) as backend:
        asked = api.asks(STREAM)
        job_id = await api.grant(backend.url)
        got = await asked

        assert (await api.ended(job_id))["state"] == "succeeded"
    assert (got.headers["content-type"], got.body) == ("application/json", {"model": "alpha"})


async def test_an_answer_too_long_to_be_held_is_passed_on_all_the_same(store: Store, tmp_path: Path) -> None:
    config: Any = {"jobs": {"max_result_bytes": 1024}}
    body = json.dumps({"data": ["x" * 300_000], "model": "up"}).encode()
    async with desk(store, tmp_path, **config) as api, faulty_server(answer("200 OK", body)) as backend:
        asked = api.asks({"model": "alpha", "input": "hi"}, "/v1/embeddings")
        job_id = await api.grant(backend.url, upstream_name="up")
        got = await asked
        job: JobRecord = await store.job(job_id)

    assert got.body["model"] == "alpha"
    assert len(got.body["data"][0]) == 300_000
    assert job.job_id == job_id
