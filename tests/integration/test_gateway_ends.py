"""Answers that end before they are complete: who left, who cancelled, whose time was up; and leases."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.api.gateway.client import Patience
from shared.states import JobState
from tests.integration.test_gateway_relay import DONE, WORDS, chunk, errors_in
from tests.kit.faulty_server import SSE_HEAD, FaultyServer, answer, faulty_server
from tests.kit.gateway import CHAT, STREAM, Desk, desk
from tests.kit.stopwatch import Stopwatch
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until


@asynccontextmanager
async def gated_server(go_on: asyncio.Event) -> AsyncIterator[str]:
    """A backend that streams ``WORDS``, the last of them once it may go on; its URL."""

    async def respond(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(WORDS[0])
        await go_on.wait()
        await response.write(b"".join(WORDS[1:]))
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _first_bytes(api: Desk, backend: FaultyServer) -> tuple[aiohttp.ClientResponse, str]:
    """A stream whose first event has come, and its job."""
    asked = asyncio.create_task(api.http.post(api.url + "/v1/chat/completions", json=STREAM))
    job_id = await api.grant(backend.url)
    response = await asked
    assert await response.content.readany() == chunk("hello")
    return response, job_id


async def test_a_client_that_leaves_frees_its_backend_at_once(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, chunk("hello"), end="hang") as backend:
        response, job_id = await _first_bytes(api, backend)
        with Stopwatch() as left:
            response.close()
            await asyncio.wait_for(backend.left.wait(), 30)
            freed_s = left.elapsed_s
        job = await api.ended(job_id)

    assert freed_s < 1
    assert (job["state"], job["error_type"]) == ("cancelled", "client_left")


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_leaves_before_the_first_byte_frees_its_backend(
    store: Store, tmp_path: Path, body: dict[str, Any]
) -> None:
    async with desk(store, tmp_path) as api, faulty_server(end="hang") as backend:
        asked = api.asks(body)
        job_id = await api.grant(backend.url)
        await wait_until(lambda: backend.requests, "the backend is asked")
        asked.cancel()
        await asyncio.wait_for(backend.left.wait(), 30)

        assert (await api.ended(job_id))["state"] == "cancelled"


async def test_a_client_that_leaves_the_queue_leaves_no_job_in_it(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api:
        asked = api.asks(STREAM)
        job_id = await api.waiting()
        asked.cancel()

        assert (await api.ended(job_id))["error_detail"] == "its client left"


async def test_a_client_that_reads_nothing_counts_as_gone(store: Store, tmp_path: Path) -> None:
    config: Any = {"router": {"idle_timeout_s": 1}}
    flood = [chunk("x" * 50_000)] * 400
    async with desk(store, tmp_path, **config) as api, faulty_server(SSE_HEAD, *flood, end="hang") as backend:
        port = api.state.settings.api.port
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            body = b'{"model":"alpha","stream":true,"messages":[{"role":"user","content":"hi"}]}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n"
            await loop.sock_sendall(client, head.encode() + body)
            job_id = await api.grant(backend.url)
            job = await api.ended(job_id)

    assert (job["state"], job["error_detail"]) == ("cancelled", "its client reads nothing any more")


async def test_cancelling_the_job_cuts_the_stream_with_an_error_event(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, chunk("hello"), end="hang") as backend:
        response, job_id = await _first_bytes(api, backend)
        await store.jobs.cancel(job_id, "an operator said so")
        rest = await response.text()
        job = await api.ended(job_id)

    assert [error["code"] for error in errors_in(rest)] == ["cancelled"]
    assert rest.endswith(DONE.decode())
    assert job["state"] == "cancelled"
    assert backend.left.is_set()


async def test_cancelling_a_waiting_job_answers_its_client(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api:
        asked = api.asks(CHAT)
        await store.jobs.cancel(await api.waiting(), "an operator said so")
        got = await asked

    assert (got.status, got.body["error"]["code"]) == (503, "cancelled")
    assert got.body["error"]["message"] == "an operator said so"
    assert got.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_passes_while_it_runs_ends_it(
    store: Store, tmp_path: Path, *, stream: bool
) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, chunk("hello"), end="hang") as backend:
        asked = api.asks({**CHAT, "stream": stream}, **{"X-Deadline-S": "2.5"})
        job_id = await api.grant(backend.url)
        got = await asked
        job = await api.ended(job_id)
        await asyncio.wait_for(backend.left.wait(), 30)

    if stream:
        assert [error["code"] for error in errors_in(got.text)] == ["deadline_exceeded"]
    else:
        assert (got.status, got.body["error"]["code"]) == (504, "deadline_exceeded")
    assert job["state"] == "expired"


async def test_a_deadline_that_passes_in_the_queue_is_a_504(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api:
        got = await api.post(CHAT, **{"X-Deadline-S": "0.3"})
        assert (got.status, got.body["error"]["code"]) == (504, "deadline_exceeded")

        async def expired() -> list[str]:
            return await store.jobs.expire(overstay_ms=0)

        ids = await wait_until(expired, "the queue is rid of it")

    assert ids == [got.headers["x-orchestrator-job-id"]]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("not_serving", 404, "model_not_found"),
        ("unknown_model", 404, "model_not_found"),
        ("context_too_small", 400, "context_length_exceeded"),
    ],
)
async def test_a_job_that_the_router_rejects_is_the_clients_error(
    store: Store, tmp_path: Path, code: str, status: int, said: str
) -> None:
    async with desk(store, tmp_path) as api:
        asked = api.asks(CHAT)
        await store.jobs.reject(await api.waiting(), code, "no model will do", ("action", "reject"))
        got = await asked

    assert (got.status, got.body["error"]["code"]) == (status, said)
    assert got.body["error"]["message"] == "no model will do"


async def test_a_lost_lease_is_our_bookkeeping_and_the_answer_goes_on(store: Store, tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with desk(store, tmp_path) as api, gated_server(go_on) as url:
        asked = api.asks(STREAM)
        job_id = await api.grant(url)
        await wait_until(lambda: api.state.gateway.running == 1, "the attempt is accepted")
        await store.lapse_lease(job_id)
        await store.jobs.sweep(grace_ms=0)
        job = await api.ended(job_id)
        go_on.set()
        got = await asked

    assert got.text.encode() == b"".join(WORDS)
    assert (job["state"], job["error_type"]) == ("failed", "lease_lost")


async def test_an_accepted_attempt_keeps_its_lease_for_as_long_as_it_runs(
    store: Store, tmp_path: Path
) -> None:
    config: Any = {"router": {"lease_s": 2}}
    go_on = asyncio.Event()
    async with desk(store, tmp_path, **config) as api, gated_server(go_on) as url:
        asked = api.asks(STREAM)
        job_id = await api.grant(url)
        granted = await store.now_ms()

        async def renewed() -> bool:
            expiry = await store.redis.zscore(store.keys.static("leases"), job_id)
            return expiry is not None and float(expiry) > granted + 5000

        await wait_until(renewed, "the lease reaches beyond the first two")
        assert await store.jobs.sweep(grace_ms=0) == []
        go_on.set()
        await asked

        assert (await api.ended(job_id))["state"] == "succeeded"


async def test_a_grant_whose_client_has_left_is_given_back(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *WORDS) as backend:
        got = await api.post(CHAT, **{"X-Deadline-S": "0.3"})
        job_id = got.headers["x-orchestrator-job-id"]
        await store.redis.hset(store.keys.job(job_id), "deadline_ms", str(await store.now_ms() + 60_000))
        await api.grant(backend.url)

        assert (await api.ended(job_id))["error_type"] == "client_left"
    assert backend.requests == []


@pytest.mark.slow
async def test_a_client_that_waits_long_is_told_how_it_stands(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, *WORDS) as backend:
        asked = asyncio.create_task(
            api.http.post(api.url + "/v1/chat/completions", json={**STREAM, "model": "auto:Chat"})
        )
        await store.jobs.hold(await api.waiting(), "model_busy", "all are busy", ("action", "hold"))
        async with await asked as response:
            headers = response.headers
            assert await response.content.readline() == b": queued position 1 of auto:Chat, all are busy\n"
            await api.grant(backend.url)
            rest = await response.text()

    assert Patience.EVERY_S == 5
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [name for name in headers if name.lower().startswith("x-orch")] == ["x-orchestrator-job-id"]
    decision = ": model=alpha backend=llama_cpp reason=it fits – well\n\n"
    assert rest.removeprefix("\n") == decision + b"".join(WORDS).decode()


@pytest.mark.slow
async def test_a_refusal_after_the_headers_becomes_an_error_event(store: Store, tmp_path: Path) -> None:
    said = answer("400 Bad Request", b'{"error":{"message":"too long for me","code":400}}')
    async with desk(store, tmp_path) as api, faulty_server(said) as backend:
        response = await api.http.post(api.url + "/v1/chat/completions", json=STREAM)
        await api.grant(backend.url)
        text = await response.text()

    assert response.status == 200
    assert text.startswith(": queued position 1 of alpha\n\n: model=alpha ")
    assert [(error["message"], error["code"]) for error in errors_in(text)] == [
        ("too long for me", "backend_rejected")
    ]
    assert text.endswith(DONE.decode())


async def test_an_api_that_stops_refuses_what_waits_and_cuts_what_runs(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api, faulty_server(SSE_HEAD, chunk("hello"), end="hang") as backend:
        response, running = await _first_bytes(api, backend)
        asked = api.asks(CHAT)
        waiting = await api.waiting()
        api.state.gateway.stop()
        refused = await asked
        rest = await response.text()
        late = await api.post(CHAT)

        assert (await api.ended(waiting))["state"] == "cancelled"
        assert (await api.ended(running))["error_type"] == "api_stopped"
    assert (refused.status, late.status) == (503, 503)
    assert [error["code"] for error in errors_in(rest)] == ["api_stopped"]


@pytest.mark.slow
async def test_a_job_that_redis_lost_is_told_to_its_client(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api:
        asked = api.asks(STREAM)
        await api.waiting()
        await store.redis.flushall()
        got = await asked

    assert [error["code"] for error in errors_in(got.text)] == ["job_lost"]
    assert await store.jobs.list_newest(state=JobState.QUEUED, limit=1) == []
