"""The api for tests: as a real process, or on a socket of this process where a test looks inside."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from services.api.__main__ import http_server, listen
from services.api.benchmark import Benchmarks
from services.api.benchmark_run import Parts
from services.api.gateway.fastpath import FastPath
from services.api.gateway.gateway import Gateway
from services.api.keyring import Keyring
from services.api.registry import Registry
from services.api.state import ApiState
from services.api.waiting import JobFeed, Subscription
from shared.config import Settings, parse
from shared.presence import Presence
from shared.process import ChildProcess
from shared.store.api_keys import ApiKeyStore
from shared.store.benchmarks import BenchmarkStore
from shared.store.control import ControlStore
from shared.store.grants import Grants
from shared.store.records import StreamEntry
from shared.store.server import EmbeddedRedis
from shared.store.streams import Follower, read_range
from tests.kit.configs import free_ports, simulated_model
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.store_dump import Dump
from tests.kit.store_fixture import Store, open_store

BOUND = 30
MAX_WAIT_S = 20
MAX_BODY_BYTES = 16 * 2**20
_START_S = 60.0


def api_config(redis_url: str, directory: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an api alone: alpha serves Chat, beta also MedicalQA, small bounds."""
    first, second, port = free_ports(3)
    config: dict[str, Any] = {
        "redis": {"url": redis_url},
        "api": {"port": port, "max_body_bytes": MAX_BODY_BYTES, "max_wait_s": MAX_WAIT_S},
        "jobs": {"max_request_bytes": MAX_BODY_BYTES},
        "queue": {"bound": BOUND},
        "models": [
            simulated_model("alpha", first),
            simulated_model("beta", second, vram_gb=6.5, agent_types=["Chat", "MedicalQA"]),
        ],
        "log": {"dir": str(directory / "logs")},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config


class ApiProcess(ChildProcess):
    """``python -m services.api`` with its own configuration file."""

    def __init__(self, directory: Path, config: Mapping[str, Any], *, instance: str | None = None) -> None:
        path = directory / "config.yaml"
        path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ORCH_")}
        name = {"ORCH_INSTANCE": instance} if instance else {}
        super().__init__(
            "api",
            [sys.executable, "-m", "services.api"],
            directory / "api.out",
            environ={**inherited, "ORCH_CONFIG": str(path), "ORCH_HOST_NAME": "host", **name},
        )
        self.settings: Settings = parse(config, "test")
        self.url = f"http://127.0.0.1:{self.settings.api.port}"
        self.document: dict[str, Any] = {}

    def start(self, path: str = "/v1/jobs") -> None:
        """Launch it and wait until it answers 200 at ``path``."""
        self.launch()
        limit = time.monotonic() + _START_S
        while self._status(path) != 200:
            assert self.poll() is None, f"the api died: {self.last_lines(20)}"
            assert time.monotonic() < limit, f"the api is not up: {self.last_lines(20)}"
            time.sleep(0.02)

    def _status(self, path: str) -> int:
        connection = HTTPConnection("127.0.0.1", self.settings.api.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, HTTPException):
            return 0
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    """``body`` is the parsed JSON, None where the answer has none."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text) if self.text else None

    def problem(self, status: int) -> dict[str, Any]:
        """The body, which must be a problem object of this status."""
        assert (self.status, self.headers["content-type"]) == (status, "application/problem+json"), self
        body: dict[str, Any] = self.body
        assert body["status"] == status
        assert body.keys() >= {"type", "title", "detail", "instance"}
        return body


@dataclass
class ApiClient:
    """Calls an api and compares every answer with what its OpenAPI document declares."""

    http: aiohttp.ClientSession
    url: str
    _document: dict[str, Any] = field(default_factory=dict)
    """Read once, then kept here."""

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        async with self.http.request(method, self.url + path, **options) as got:
            answer = Answer(got.status, got.headers, await got.text())
        await self._compare(method, path, answer)
        return answer

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, job: Any, *, query: str = "", **headers: str) -> Answer:
        """POST a job; bytes are sent as they are."""
        body = job if isinstance(job, bytes) else json.dumps(job).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("POST", f"/v1/jobs{query}", data=io.BytesIO(body), headers=named)

    async def submit(self, **job: Any) -> str:
        """POST a job that must be accepted; its id."""
        answer = await self.post({"prompt": "hi", **job})
        assert answer.status == 202, answer
        return str(answer.body["job_id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        answer = await self.get(f"/v1/jobs/{job_id}")
        assert answer.status == 200, answer
        body: dict[str, Any] = answer.body
        return body

    async def document(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if not self._document:
            async with self.http.get(f"{self.url}/openapi.json") as got:
                self._document.update(await got.json())
        return self._document

    async def _compare(self, method: str, path: str, answer: Answer) -> None:
        bare = path.partition("?")[0]
        for template, calls in (await self.document())["paths"].items():
            pattern = re.sub(r"\{\w+\}", "[^/]+", template)
            if re.fullmatch(pattern, bare) and method.lower() in calls:
                declared = calls[method.lower()]["responses"]
                assert str(answer.status) in declared, f"{method} {path}: {answer.status} is not declared"
                media = answer.headers.get("content-type", "").partition(";")[0]
                told = declared[str(answer.status)]
                assert media in told.get("content", {"": {}}), f"{method} {path}"
                due = {name for name, header in told.get("headers", {}).items() if header.get("required")}
                assert all(name in answer.headers for name in due), f"{method} {path}: {due} are declared"
                return


def state_on(store: Store, config: Mapping[str, Any]) -> ApiState:
    """The state of an api in this process, on the test's own connections; its feed does not run yet."""
    settings = parse(config, "test")

    async def read_events(start: str) -> list[StreamEntry]:
        return await read_range(store.redis, store.keys.events, start=start, count=3)

    usable = asyncio.Event()
    usable.set()
    feed = JobFeed(Follower(store.reader, {store.keys.events: "0-0"}))
    history, retention_s = settings.history, settings.jobs.retention_s
    benchmarks = BenchmarkStore(store.redis, store.keys, history, retention_s)
    registry = Registry(store.fleet, settings.registrations)
    presence = Presence(store.fleet, service="api", host="host", address="", explicit=None)
    fast = FastPath(store.jobs, store.fleet, settings, lambda: presence.instance)
    gateway = Gateway(
        settings,
        store.jobs,
        fast,
        registry,
        presence,
        usable,
        lambda holder: Grants(store.reader, store.keys, holder),
    )
    api_keys = ApiKeyStore(store.redis, store.keys, history, retention_s)
    keyring = Keyring(api_keys, settings.api, Follower(store.reader, {store.keys.control: "$"}))
    return ApiState(
        settings=settings,
        jobs=store.jobs,
        fleet=store.fleet,
        fast=fast,
        control=ControlStore(store.redis, store.keys, history, retention_s),
        benchmarks=Benchmarks(Parts(settings, store.jobs, store.fleet, benchmarks, feed)),
        gateway=gateway,
        registry=registry,
        keyring=keyring,
        feed=feed,
        read_events=read_events,
        usable=usable,
        config_file=None,
    )


async def hear(events: Subscription, kind: str) -> None:
    """Wait until a subscription brings an event of this type."""
    async with asyncio.timeout(30):
        while True:
            entry = await events.next(60)
            if entry is not None and entry.fields["type"] == kind:
                return


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is over."""
    task.cancel()
    await asyncio.wait({task})


async def at_rest(store: Store) -> Dump:
    """What Redis holds, without the heartbeats that a running api writes whatever it is asked."""
    return (await store.dump()).without(store.keys.services)


@asynccontextmanager
async def serving(state: ApiState) -> AsyncIterator[str]:
    """Serve a state's app on its port in this process; the URL."""
    await state.keyring.load()
    runs = (state.feed.run(), state.gateway.run(), state.keyring.run())
    running = [asyncio.create_task(run) for run in runs]
    with listen(state.settings.api) as listener:
        server = http_server(state)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{state.settings.api.port}"
        server.should_exit = True
        state.feed.close()
        state.gateway.stop()
        await state.benchmarks.close()
        await task
    for run in running:
        await end(run)


@pytest.fixture(scope="session")
def api_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis for the session's api: on the shared one it would write into other tests' data."""
    with EmbeddedRedis(free_port(), tmp_path_factory.mktemp("api-redis")) as server:
        yield server


@pytest.fixture(scope="session")
def api_process(api_redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """One api for the session, on its own Redis; a test that stops one starts its own."""
    directory = tmp_path_factory.mktemp("api")
    process = ApiProcess(directory, api_config(api_redis.url, directory))
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def api_store(api_process: ApiProcess) -> AsyncIterator[Store]:
    """The store of the session's api, emptied but for the models: the test plays router and monitor."""
    url = api_process.settings.redis.effective_url
    redis_reply(url, "FLUSHALL")
    async with open_store(url) as opened:
        await opened.fleet.register(api_process.settings.registrations)
        yield opened
        await opened.check()


@pytest.fixture
async def api(api_process: ApiProcess, api_store: Store) -> AsyncIterator[ApiClient]:
    """A client of the session's api, whose store is empty."""
    assert api_store.url == api_process.settings.redis.url
    async with aiohttp.ClientSession() as session:
        yield ApiClient(session, api_process.url, api_process.document)
