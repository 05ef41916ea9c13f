"""Two apis and two routers as processes before backends whose every byte is known, and their clients."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.kit.configs import free_ports
from tests.kit.journal import Journal
from tests.kit.stack import Stack
from tests.kit.store_dump import dump, violations
from tests.kit.stream_clients import Heard, client_session, listen
from tests.kit.waiting import wait_until
from tests.kit.word_server import Script, WordServer

APIS = ("api", "api-2")
ROUTERS = ("router", "router-2")
Client = tuple[Heard, "asyncio.Task[Heard]"]
"""A client under way, and what it has heard so far."""


@dataclass
class Arena:
    """``urls``, ``processes`` and ``instances`` by the names in ``APIS`` and ``ROUTERS``."""

    stack: Stack
    servers: Mapping[str, WordServer]
    urls: Mapping[str, str]
    http: aiohttp.ClientSession
    tight: aiohttp.ClientSession
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    seeds: int = 0

    def start(self, name: str) -> None:
        """Start the process of this name, or one in its place; a dead one keeps its instance for a while."""
        service = name.partition("-")[0]
        self.starts += 1
        self.instances[name] = f"{name}_{self.starts}"
        environ = {"ORCH_API__PORT": self.urls[name].rpartition(":")[2]} if name in self.urls else {}
        self.processes[name] = self.stack.start(service, instance=self.instances[name], environ=environ)

    def kill(self, name: str) -> None:
        """SIGKILL it."""
        self.processes[name].kill()
        self.processes[name].wait()

    async def complete(self) -> None:
        """Start whatever is gone, and wait until all is ready."""
        for name in (*ROUTERS, *APIS):
            if name not in self.processes or self.processes[name].poll() is not None:
                self.start(name)
        ready = [server.ready(self.stack.http) for server in self.servers.values()]
        await asyncio.gather(*ready, *map(self.ready, APIS))

    async def now_ms(self) -> int:
        """Redis' clock."""
        seconds, micros = await self.stack.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def ready(self, api: str) -> None:
        """Wait until this api says that all is ready."""
        await self.stack.ready(self.urls[api])

    def ask(self, api: str, model: str, *, pace_s: float = 0.0, **script: Any) -> Client:
        """A new client of this api; with ``pace_s`` it reads in small bites so far apart."""
        self.seeds += 1
        heard = Heard(Script(self.seeds, **script))
        http = self.tight if pace_s else self.http
        body = heard.script.body(model)
        return heard, asyncio.create_task(listen(http, self.urls[api], body, heard, pause_s=pace_s))

    async def running(self, *models: str) -> int:
        """Attempts in flight on these models (all, if none is named)."""
        return sum([await self.stack.in_flight(model) for model in models or self.servers])

    async def idle(self) -> None:
        """Wait until nothing waits, nothing runs and no backend works on anything."""

        async def over() -> bool:
            busy = [await server.busy(self.stack.http) for server in self.servers.values()]
            return await self.stack.jobs.counts() == (0, 0) and not any(busy)

        await wait_until(over, "nothing waits and nothing runs", timeout_s=40)

    async def journal(self) -> Journal:
        """The history once all is over, found sound: every job ended once, and every slot is free."""
        await self.idle()
        stack = self.stack
        assert violations(await dump(stack.redis, stack.keys), stack.keys) == []
        journal = Journal(await stack.events())
        assert journal.faults() == []
        assert set(journal.ended()) == set(journal.jobs)
        return journal


@asynccontextmanager
async def open_arena(
    directory: Path,
    redis_url: str,
    servers: Mapping[str, WordServer],
    models: Mapping[str, Mapping[str, Any]],
    **sections: Mapping[str, Any],
) -> AsyncIterator[Arena]:
    """All of it up and ready; ``models`` is what the registrations say besides name and address."""
    registered = [
        {"name": name, "url": server.url, "vram_gb": 0.5, "agent_types": ["Chat"], **models.get(name, {})}
        for name, server in servers.items()
    ]
    ports = free_ports(len(APIS))
    config = {
        "redis": {"url": redis_url},
        "api": {"port": ports[0]},
        "gpu": {"source": "none", "interval_s": 0.2},
        "models": registered,
        **sections,
    }
    async with AsyncExitStack() as leaving:
        stack = await leaving.enter_async_context(Stack(directory, config))
        http = await leaving.enter_async_context(client_session())
        tight = await leaving.enter_async_context(client_session(small_window=True))
        for server in servers.values():
            leaving.enter_context(server)
        urls = {name: f"http://127.0.0.1:{port}" for name, port in zip(APIS, ports, strict=True)}
        arena = Arena(stack, servers, urls, http, tight)
        stack.start("monitor")
        await arena.complete()
        yield arena
