"""The OpenAI-compatible calls while Redis is away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from shared.states import JobState
from shared.store.server import EmbeddedRedis
from tests.integration.test_gateway_ends import gated_server
from tests.integration.test_gateway_relay import WORDS
from tests.kit.api_fixture import ApiClient, ApiProcess, api_config
from tests.kit.gateway import CHAT, STREAM, desk
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import Store, open_store
from tests.kit.waiting import wait_until


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test's own, not started yet."""
    server = EmbeddedRedis(free_port(), tmp_path / "redis")
    yield server
    server.kill()


async def test_without_redis_the_calls_say_when_to_come_again(tmp_path: Path, redis: EmbeddedRedis) -> None:
    process = ApiProcess(tmp_path, api_config(redis.url, tmp_path))
    try:
        await asyncio.to_thread(process.start, "/healthz")
        async with aiohttp.ClientSession() as session:
            api = ApiClient(session, process.url)
            refused = await api.call("POST", "/v1/chat/completions", json=CHAT)
            models = await api.get("/v1/models")
            redis.start()

            async def listed() -> bool:
                return (await api.get("/v1/models")).status == 200

            await wait_until(listed, "the models are listed", timeout_s=60)
            redis.kill()
            again = await api.call("POST", "/v1/chat/completions", json=CHAT)
    finally:
        process.kill()

    for answer in (refused, models, again):
        assert (answer.status, answer.body["error"]["code"]) == (503, "store_unavailable")
        assert answer.body["error"]["type"] == "server_error"
        assert int(answer.headers["retry-after"]) > 0


async def test_an_answer_goes_on_while_redis_is_away_and_is_recorded_when_it_is_back(
    tmp_path: Path, redis: EmbeddedRedis
) -> None:
    redis.start()
    go_on = asyncio.Event()
    async with open_store(redis.url) as store, desk(store, tmp_path) as api, gated_server(go_on) as url:
        asked = api.asks(STREAM)
        job_id = await api.grant(url)
        await wait_until(lambda: api.state.gateway.running == 1, "it runs")
        redis.kill()
        go_on.set()
        got = await asked
        redis.start()

        assert (await api.ended(job_id))["state"] == "succeeded"
    assert got.text.encode() == b"".join(WORDS)


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_request_given_up_while_it_is_submitted_leaves_no_job_in_the_queue(
    tmp_path: Path, redis: EmbeddedRedis, *, leaves: bool
) -> None:
    redis.start()
    assert redis.pid is not None
    async with open_store(redis.url) as store, desk(store, tmp_path) as api:
        # The first submission of a process learns Redis' clock; only later ones are accepted in one call.
        before = api.asks(CHAT)
        await api.waiting()
        before.cancel()
        await wait_until(lambda: _waiting(store, 0), "the queue is empty")
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            asked = api.asks(CHAT, **{"X-Deadline-S": "30" if leaves else "1"})
            await wait_until(lambda: api.state.gateway.open_requests == 1, "it is being submitted")
            if leaves:
                asked.cancel()
            await wait_until(lambda: api.state.gateway.open_requests == 0, "it is given up")
        finally:
            os.kill(redis.pid, signal.SIGCONT)

        async def cancelled() -> bool:
            return len(await store.jobs.list_newest(state=JobState.CANCELLED, limit=9)) == 2

        await wait_until(cancelled, "it is cancelled")
        assert await store.jobs.counts() == (0, 0)


async def _waiting(store: Store, count: int) -> bool:
    return (await store.jobs.counts())[0] == count
