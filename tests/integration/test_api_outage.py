"""The api process when something is in its way: a dead, hanging or wrong Redis, a taken port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from shared.store.server import EmbeddedRedis
from tests.kit.api_fixture import Answer, ApiClient, ApiProcess, api_config
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.stopwatch import Stopwatch
from tests.kit.store_fixture import Store, open_store
from tests.kit.waiting import wait_until

_FAST_S = 5.0
_RECOVERY_S = 10.0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test's own, not started yet."""
    server = EmbeddedRedis(free_port(), tmp_path / "redis")
    yield server
    server.kill()


@pytest.fixture
def process(tmp_path: Path, redis: EmbeddedRedis) -> Iterator[ApiProcess]:
    """An api of this test's own, not started yet."""
    api = ApiProcess(tmp_path, api_config(redis.url, tmp_path))
    yield api
    api.kill()


@pytest.fixture
async def own_api(process: ApiProcess) -> AsyncIterator[ApiClient]:
    async with aiohttp.ClientSession() as session:
        yield ApiClient(session, process.url)


async def test_an_api_that_comes_before_redis_answers_503_until_it_is_there(
    redis: EmbeddedRedis, process: ApiProcess, own_api: ApiClient
) -> None:
    process.start("/healthz")
    missing = await own_api.get("/readyz")
    refused = await own_api.post({"prompt": "hi"})
    redis.start()

    async def accepted() -> bool:
        return (await own_api.post({"prompt": "hi", "model": "alpha"})).status == 202

    await wait_until(accepted, "jobs are accepted", timeout_s=_RECOVERY_S)

    assert missing.status == 503
    assert missing.body["missing"][0].startswith("redis")
    assert "Redis" in refused.problem(503)["detail"]
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_killed_redis_costs_503_at_once_and_no_job(
    redis: EmbeddedRedis, process: ApiProcess, own_api: ApiClient
) -> None:
    redis.start()
    process.start()
    waiting = asyncio.create_task(own_api.post({"prompt": "hi"}, query="?wait=20"))

    async def accepted() -> str | None:
        jobs = (await own_api.get("/v1/jobs")).body["jobs"]
        return jobs[0]["job_id"] if jobs else None

    job_id = await wait_until(accepted, "the job is accepted")
    redis.kill()

    await _all_refused(own_api, process, job_id)
    redis.start()
    await wait_until(lambda: _accepts(own_api), "jobs are accepted", timeout_s=_RECOVERY_S)
    async with _store(redis) as store:
        await store.finish(job_id, (await store.claim(job_id)).attempt)

    answer = await waiting
    assert (answer.status, answer.body["state"]) == (200, "succeeded")


async def test_a_redis_that_hangs_costs_503_within_five_seconds(
    redis: EmbeddedRedis, process: ApiProcess, own_api: ApiClient
) -> None:
    redis.start()
    process.start()
    job_id = await own_api.submit()
    assert redis.pid is not None
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        await _all_refused(own_api, process, job_id)
    finally:
        os.kill(redis.pid, signal.SIGCONT)

    await wait_until(lambda: _accepts(own_api), "jobs are accepted", timeout_s=_RECOVERY_S)


async def test_a_redis_that_lost_its_data_gets_models_and_heartbeat_again(
    redis: EmbeddedRedis, process: ApiProcess, own_api: ApiClient
) -> None:
    redis.start()
    process.start()
    redis_reply(redis.url, "FLUSHALL")

    async def restored() -> bool:
        status = (await own_api.get("/v1/gpu/status")).body
        return set(status["models"]) == {"alpha", "beta"} and bool(status["services"])

    await wait_until(restored, "models and heartbeat are back", timeout_s=_RECOVERY_S)
    assert (await own_api.post({"prompt": "hi", "model": "beta"})).status == 202


async def test_models_of_an_earlier_file_go_and_those_from_elsewhere_stay(
    redis: EmbeddedRedis, process: ApiProcess, own_api: ApiClient
) -> None:
    redis.start()
    for name, source in (("old", "file"), ("mine", "http")):
        registration = f'{{"name": "{name}", "port": 1, "source": "{source}"}}'
        redis_reply(redis.url, "HSET", "orch:models", name, registration)
    process.start()

    assert (await own_api.get("/v1/gpu/status")).body["models"].keys() == {"alpha", "beta", "mine"}


async def test_a_stop_ends_all_waiting_at_once_with_the_jobs_as_they_are(
    redis: EmbeddedRedis, process: ApiProcess, own_api: ApiClient
) -> None:
    redis.start()
    process.start()
    job_id = await own_api.submit()
    waiting = asyncio.create_task(own_api.post({"prompt": "hi"}, query="?wait=20"))
    async with own_api.http.get(f"{own_api.url}/v1/jobs/{job_id}/events") as events, _store(redis) as store:
        await events.content.readuntil(b"\n\n")

        async def both() -> bool:
            return await store.jobs.counts() == (2, 0)

        await wait_until(both, "the second job is accepted")
        assert process.pid is not None
        with Stopwatch(process.pid) as told:
            process.terminate()
            rest = await events.content.read()
            answer = await waiting
            await wait_until(lambda: process.poll() is not None, "the process ends")
            in_time = told.elapsed_s < _FAST_S

        assert (process.poll(), in_time) == (0, True), process.last_lines(20)
        assert (answer.status, answer.body["state"]) == (202, "queued")
        assert rest.startswith(b": this api stops")
        assert await store.fleet.services() == ()


async def test_a_stop_while_redis_is_away_is_orderly_too(process: ApiProcess) -> None:
    process.start("/healthz")
    assert process.pid is not None
    with Stopwatch(process.pid) as told:
        process.terminate()
        await wait_until(lambda: process.poll() is not None, "the process ends")
        assert told.elapsed_s < _FAST_S

    assert process.poll() == 0


def test_a_taken_port_is_named_with_its_remedy(process: ApiProcess) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", process.settings.api.port))
        other.listen()
        _refuses(process, 1, f"api.port {process.settings.api.port}", "is taken")


def test_a_redis_that_evicts_is_refused(redis: EmbeddedRedis, process: ApiProcess) -> None:
    redis.start()
    redis_reply(redis.url, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")

    _refuses(process, 1, "noeviction")


def test_a_name_that_lives_already_is_refused(redis: EmbeddedRedis, tmp_path: Path) -> None:
    redis.start()
    config = api_config(redis.url, tmp_path)
    redis_reply(redis.url, "HSET", "orch:services", "twin", '{"boot": "other", "heartbeat_ms": 9e15}')

    _refuses(ApiProcess(tmp_path, config, instance="twin"), 1, "ORCH_INSTANCE")


def test_a_wrong_setting_is_named_in_one_line(tmp_path: Path, process: ApiProcess) -> None:
    (tmp_path / "config.yaml").write_text("api: {port: 70000}\n", encoding="utf-8")

    _refuses(process, 2, "api.port = 70000")


def test_a_redis_url_that_is_none_is_named(tmp_path: Path, process: ApiProcess) -> None:
    (tmp_path / "config.yaml").write_text("redis: {url: 'redis://x:port'}\n", encoding="utf-8")

    _refuses(process, 2, "redis.url")


def _refuses(process: ApiProcess, status: int, *said: str) -> None:
    """It must end with this status and one last line that says all this."""
    process.launch()
    ended = process.wait(60)
    lines = process.last_lines(20)
    process.kill()
    assert ended, lines
    assert (process.poll(), "Traceback" in "\n".join(lines)) == (status, False), lines
    assert all(part in lines[-1] for part in said), lines


async def _accepts(api: ApiClient) -> bool:
    return (await api.post({"prompt": "hi"})).status == 202


async def _all_refused(api: ApiClient, process: ApiProcess, job_id: str) -> None:
    assert process.pid is not None
    with Stopwatch(process.pid) as asked:
        *answers, ready, alive = await _ask_everything(api, job_id)
        assert asked.elapsed_s < _FAST_S
    for answer in answers:
        answer.problem(503)
        assert int(answer.headers["retry-after"]) >= 1
    assert (ready.status, alive.status) == (503, 200)


async def _ask_everything(api: ApiClient, job_id: str) -> list[Answer]:
    """The answers of all calls at once, the last two being those of ``/readyz`` and ``/healthz``."""
    return await asyncio.gather(
        api.post({"prompt": "hi"}),
        api.get(f"/v1/jobs/{job_id}"),
        api.get("/v1/jobs"),
        api.call("DELETE", f"/v1/jobs/{job_id}"),
        api.get(f"/v1/jobs/{job_id}/events"),
        api.get("/v1/gpu/status"),
        api.post({"prompt": "hi"}, query="?wait=20"),
        api.get("/readyz"),
        api.get("/healthz"),
    )


@asynccontextmanager
async def _store(redis: EmbeddedRedis) -> AsyncIterator[Store]:
    async with open_store(redis.url) as store:
        yield store
