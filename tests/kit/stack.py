"""The services as real processes on a real Redis, for tests that look at the whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from redis.asyncio import Redis

from shared.config import Settings, parse
from shared.keys import Keys
from shared.store.client import connect_commands
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.records import StreamEntry
from shared.store.streams import read_range
from tests.kit.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
_READY_S = 60.0
_STOP_S = 30.0
_END_S = 60.0
Json = dict[str, Any]


class Stack:
    """A set of service processes that share one configuration; everything started is ended on leaving."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self.directory = directory
        config = {**config, "log": {"dir": str(directory / "logs"), **config.get("log", {})}}
        self.path = directory / "config.yaml"
        self.path.write_text(yaml.safe_dump(_plain(config)), encoding="utf-8")
        self.settings: Settings = parse(config, "test")
        self.keys = Keys(self.settings.redis.namespace)
        self.api = f"http://{self.settings.api.host}:{self.settings.api.port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._latest: dict[str, subprocess.Popen[bytes]] = {}
        self._exit = AsyncExitStack()
        self.redis: Redis
        self.http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self.redis = connect_commands(self.settings.redis.effective_url, "test")
        self._exit.push_async_callback(self.redis.aclose)
        self.http = await self._exit.enter_async_context(aiohttp.ClientSession())
        self.jobs = JobStore(self.redis, self.keys, self.settings.history, self.settings.jobs.retention_s)
        self.fleet = FleetStore(self.redis, self.keys, self.settings.history)
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        await self._exit.aclose()

    def start(
        self, service: str, *, instance: str | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``python -m services.<service>``; its output goes to a file in the stack's directory.

        ``environ`` is for this process alone.
        """
        name = instance or service
        own = {"ORCH_CONFIG": str(self.path), "ORCH_HOST_NAME": "host", **(environ or {})}
        if instance:
            own["ORCH_INSTANCE"] = instance
        with (self.directory / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", f"services.{service}"],
                cwd=ROOT,
                env={**os.environ, **own},
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self._processes.append(process)
        self._latest[name] = process
        return process

    @property
    def pids(self) -> list[int]:
        """Of all processes that were started and not found ended."""
        return [process.pid for process in self._processes if process.returncode is None]

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """The process started last under this name."""
        return self._latest[name]

    def kill(self, name: str) -> None:
        """SIGKILL the process started last under this name."""
        process = self._latest[name]
        process.kill()
        process.wait()

    def output(self, name: str) -> str:
        """What a process printed so far."""
        return (self.directory / f"{name}.out").read_text(encoding="utf-8", errors="replace")

    async def start_all(self, services: Sequence[str] = ("simulator", "monitor", "router", "api")) -> None:
        """Start one process of each and wait until the api says that all is ready."""
        for service in services:
            self.start(service)
        await self.ready()

    async def ready(self, api: str = "") -> None:
        """Wait until this api (by default the stack's) says that all is up: before, it refuses what comes."""
        last: object = None

        async def says_so() -> bool:
            nonlocal last
            try:
                async with self.http.get(f"{api or self.api}/readyz") as answer:
                    last = await answer.text()
                    return answer.status == 200
            except aiohttp.ClientError as error:
                last = error
                return False

        try:
            await wait_until(says_so, "the api says ready", timeout_s=_READY_S)
        except AssertionError as error:
            tails = {name: self.output(name)[-1000:] for name in self._latest}
            raise AssertionError(f"{error}; it said {last}; the ends of the logs: {tails}") from None

    async def post(self, job: Json, *, wait_s: float | None = None, **headers: str) -> tuple[int, Json]:
        """POST a job; status and body."""
        query = "" if wait_s is None else f"?wait={wait_s:g}"
        async with self.http.post(f"{self.api}/v1/jobs{query}", json=job, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def submit(self, **job: Any) -> str:
        """POST a job that must be accepted; its id."""
        status, body = await self.post(job)
        assert status == 202, body
        return str(body["job_id"])

    async def job(self, job_id: str) -> Json:
        """A job as GET answers it."""
        async with self.http.get(f"{self.api}/v1/jobs/{job_id}") as answer:
            assert answer.status == 200, await answer.text()
            body: Json = await answer.json()
            return body

    async def ended(self, job_id: str, *, timeout_s: float = _END_S) -> Json:
        """A job once it has ended."""

        async def over() -> Json | None:
            body = await self.job(job_id)
            return body if body["state"] not in ("queued", "running") else None

        return await wait_until(over, f"job {job_id} ends", timeout_s=timeout_s)

    async def events(self, job_id: str | None = None) -> list[StreamEntry]:
        """All events kept, or those of one job, oldest first."""
        found: list[StreamEntry] = []
        start = "-"
        while page := await read_range(self.redis, self.keys.events, start=start, count=1000):
            found += page
            start = f"({page[-1].id}"
        return [entry for entry in found if job_id in (None, entry.fields.get("job_id"))]

    async def dead_letters(self) -> list[Mapping[str, str]]:
        """What lies in ``orch:jobs:dead``, oldest first."""
        return [entry.fields for entry in await read_range(self.redis, self.keys.dead)]

    async def event_types(self, job_id: str) -> list[str]:
        return [entry.fields["type"] for entry in await self.events(job_id)]

    async def in_flight(self, model: str) -> int:
        value: Any = await self.redis.hget(self.keys.model(model), "in_flight")
        return int(value or 0)

    async def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM and wait for an orderly end."""
        process.terminate()
        await wait_until(lambda: process.poll() is not None, "the process ends", timeout_s=_STOP_S)
        return int(process.returncode)


@asynccontextmanager
async def running_stack(
    directory: Path, redis_url: str, config: Mapping[str, Any], services: Sequence[str]
) -> AsyncIterator[Stack]:
    """A stack with these services up and ready."""
    merged = {**config, "redis": {"url": redis_url, **config.get("redis", {})}}
    async with Stack(directory, merged) as stack:
        await stack.start_all(services)
        yield stack


def _plain(config: Mapping[str, Any]) -> Json:
    plain: Json = yaml.safe_load(yaml.safe_dump(dict(config)))
    return plain
