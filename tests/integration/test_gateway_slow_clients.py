"""Clients that take their answer slowly: neither taken for gone too soon, nor waited for by anything else."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.kit.faulty_server import answer, faulty_server
from tests.kit.gateway import Desk, desk
from tests.kit.stopwatch import Stopwatch
from tests.kit.store_fixture import MODEL, Store
from tests.kit.stream_clients import PATH, Heard, Verdict, client_session
from tests.kit.waiting import wait_until
from tests.kit.word_server import Script, WordServer

IDLE_S = 3.0
STANDSTILL_S = 3.5
AT_ONCE_S = 0.8
"""Less than the second that a slow client is given for the word that its answer broke off."""
SCRIPT = Script(1, events=2500, size=4000)
"""10 MB: more than the kernel takes off the api's hands."""


@asynccontextmanager
async def _stuck(api: Desk, server: WordServer) -> AsyncIterator[tuple[str, aiohttp.ClientResponse]]:
    """A job and its answer, of which the client takes nothing, so that nobody can go on."""
    async with client_session(small_window=True) as slow, AsyncExitStack() as leaving:
        asked = asyncio.create_task(slow.post(api.url + PATH, json=SCRIPT.body(MODEL), read_bufsize=4096))
        job_id = await api.grant(server.url)
        answer = await asked
        leaving.callback(answer.close)
        seen: list[int | None] = []

        async def still() -> bool:
            seen.append(await server.written(api.http))
            return bool(seen[-1]) and len(seen) > 5 and len(set(seen[-5:])) == 1

        await wait_until(still, "the backend can write no more")
        yield job_id, answer


async def test_a_client_is_not_taken_for_gone_because_the_api_stood_still(
    store: Store, tmp_path: Path
) -> None:
    config: Any = {"router": {"idle_timeout_s": IDLE_S}}
    with WordServer("words", tmp_path, slots=1) as server:
        async with desk(store, tmp_path, **config) as api:
            await server.ready(api.http)
            async with _stuck(api, server) as (_, answer):
                _stand_still()
                heard = Heard(SCRIPT, answer.status)
                async for piece in answer.content.iter_any():
                    heard.body += piece

    assert heard.verdict() is Verdict.COMPLETE


async def test_a_slow_client_does_not_hold_up_the_record_of_its_jobs_end(
    store: Store, tmp_path: Path
) -> None:
    took_s = []
    with WordServer("words", tmp_path, slots=1) as server:
        async with desk(store, tmp_path) as api:
            await server.ready(api.http)
            # The best of three: a loaded machine may be late once or twice.
            for _ in range(3):
                async with _stuck(api, server) as (job_id, _):
                    with Stopwatch() as asked:
                        await store.jobs.cancel(job_id, "no longer needed")
                        assert (await api.ended(job_id))["state"] == "cancelled"
                        took_s.append(asked.elapsed_s)

    assert min(took_s) < AT_ONCE_S, took_s


async def test_a_client_that_asks_twice_and_reads_nothing_counts_as_gone(
    store: Store, tmp_path: Path
) -> None:
    config: Any = {"router": {"idle_timeout_s": 1}, "jobs": {"max_result_bytes": 16 * 2**20}}
    body = b'{"model":"alpha","messages":[{"role":"user","content":"hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n"
    long = answer("200 OK", b'{"text":"' + b"x" * 15_000_000 + b'"}')
    async with desk(store, tmp_path, **config) as api, faulty_server(long) as backend:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", api.state.settings.api.port))
            await loop.sock_sendall(client, (head.encode() + body) * 2)
            first = await api.grant(backend.url, backend="vllm")
            assert (await api.ended(first))["state"] == "succeeded"
            await api.grant(backend.url, backend="vllm")
            # The backend's answer is complete, so that of the job there is nothing to cancel.
            await wait_until(lambda: api.state.gateway.open_requests == 0, "the second request is given up")


def _stand_still() -> None:
    """Stop this whole process, the api in it too, as SIGSTOP or a machine that is suspended would."""
    time.sleep(STANDSTILL_S)
