"""A vLLM under test, real or simulated, seen the same way, and ways to use it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import JsonValue

from services.simulator.host import SimulatedHost
from services.simulator.vllm_backend import VllmBackend
from services.simulator.vllm_engine import Limits
from shared.backends import exposition
from shared.backends.completion import Completion, complete
from shared.backends.errors import BackendError
from shared.backends.http import HttpClient
from shared.backends.probe import Probe, Props, probe
from shared.config import SimulatorSettings
from shared.states import BackendType
from tests.kit.backends import call, registration
from tests.kit.vllm_server import VllmServer
from tests.kit.waiting import wait_until

_BLOCK_TOKENS = 128
"""What vLLM takes on a CPU."""


@dataclass(frozen=True, slots=True)
class Vllm:
    """Where it is and what it was started with; ``kill_engine`` lets its engine die."""

    url: str
    name: str
    context_tokens: int
    max_num_seqs: int
    kv_blocks: int
    max_queued: int
    simulated: bool
    kill_engine: Callable[[], None]

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * _BLOCK_TOKENS


@asynccontextmanager
async def simulated_vllm(
    name: str = "tiny", *, settings: SimulatorSettings | None = None, **changes: Any
) -> AsyncIterator[VllmBackend]:
    """One model simulated as vLLM on a free port: 4 requests at once, 1,000 tokens/s each, ready at once."""
    fields: dict[str, Any] = {
        "backend": BackendType.VLLM, "slots": 4, "context_tokens": 2048, "tokens_per_second": 100.0,
    }  # fmt: skip
    model = registration(name, **{**fields, **changes})
    chosen = settings or SimulatorSettings(load_s=0, speedup=10.0)
    async with SimulatedHost([model], chosen, free_ports=True) as host:
        backend = host.backends[name]
        assert isinstance(backend, VllmBackend)
        yield backend


def as_small_as(backend: VllmBackend, server: Limits) -> Vllm:
    """The simulated one with the limits of a real server."""
    backend.model.engine.limits = server
    return Vllm(
        url=backend.url,
        name=backend.name,
        context_tokens=backend.model.context_tokens,
        max_num_seqs=server.max_num_seqs,
        kv_blocks=server.num_blocks,
        max_queued=server.max_queued or 0,
        simulated=True,
        kill_engine=backend.model.kill_engine,
    )


SMALL = Limits(max_num_seqs=4, num_blocks=24, block_size=_BLOCK_TOKENS, max_queued=6)
"""The limits that the real one is started with, too."""


def real_vllm(server: VllmServer) -> Vllm:
    """A running real server."""
    return Vllm(
        url=server.url,
        name=server.name,
        context_tokens=server.context_tokens,
        max_num_seqs=server.max_num_seqs,
        kv_blocks=server.blocks,
        max_queued=server.max_queued,
        simulated=False,
        kill_engine=server.kill_engine,
    )


class VllmClient:
    """One vLLM as a client and as an operator use it.

    ``door``: where completions are asked for, if not at the server itself.
    """

    def __init__(
        self, http: aiohttp.ClientSession, client: HttpClient, server: Vllm, door: str | None = None
    ) -> None:
        self.http = http
        self.client = client
        self.server = server
        self.door = door or server.url

    async def get(self, path: str) -> Any:
        async with self.http.get(self.server.url + path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def status(self, path: str) -> tuple[int, str]:
        async with self.http.get(self.server.url + path) as response:
            return response.status, await response.text()

    async def operate(self, path: str) -> Any:
        """POST to one of the endpoints of the development mode."""
        async with self.http.post(self.server.url + path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def ask(self, path: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
        """A completion without our client: its status, and the object or the chunks of the stream."""
        full = {"model": self.server.name, **body}
        async with self.http.post(self.door + path, json=full) as response:
            text = await response.text()
            if response.content_type == "text/event-stream":
                return response.status, text.removesuffix("\n\n").split("\n\n")
            return response.status, await response.json()

    async def complete(
        self,
        body: Mapping[str, JsonValue] | None = None,
        begun: Callable[[], None] | None = None,
        **changes: Any,
    ) -> Completion:
        """A completion as the router asks for it."""
        fields: dict[str, Any] = {
            "upstream_name": self.server.name, "backend": BackendType.VLLM, "idle_timeout_s": 30.0,
        }  # fmt: skip
        return await complete(self.client, call(self.door, body, **{**fields, **changes}), begun)

    async def probe(self, props: Props | None = None) -> Probe:
        return await probe(self.http, self.server.url, BackendType.VLLM, timeout_s=5.0, props=props)

    async def metrics(self) -> list[exposition.Sample]:
        _, text = await self.status("/metrics")
        return exposition.parse(text)

    async def metric(self, name: str) -> float:
        """The sum of one metric over its series."""
        return sum(exposition.values(await self.metrics(), f"vllm:{name}"))

    async def queue(self) -> tuple[float, float]:
        """Requests that run and that wait, as the gauges say."""
        samples = await self.metrics()
        running, waiting = (
            sum(exposition.values(samples, f"vllm:num_requests_{name}")) for name in ("running", "waiting")
        )
        return running, waiting

    async def queued(self, running: int, waiting: int) -> None:
        """Wait until so many run and wait."""

        async def reached() -> bool:
            return await self.queue() == (running, waiting)

        await wait_until(reached, f"{running} run and {waiting} wait")

    async def loaded(self, count: int) -> None:
        """Wait until ``/load`` says so many."""

        async def reached() -> bool:
            return bool((await self.get("/load"))["server_load"] == count)

        await wait_until(reached, f"/load says {count}")

    @asynccontextmanager
    async def inside(
        self, count: int, max_tokens: int = 1000, *, held: bool = False
    ) -> AsyncIterator[list[asyncio.Task[Completion]]]:
        """So many completions, let in one by one while the engine is held, which then goes on.

        Held, since a real server on few cores may be through before the next one is in, and since admission
        control counts what comes at once only after it has let it in. With ``held`` it stays so.
        """
        body: dict[str, JsonValue] = {"prompt": "the queue", "max_tokens": max_tokens}
        async with AsyncExitStack() as leaving:
            tasks = []
            if not held:
                await self.operate("/pause?mode=keep")
            for _ in range(count):
                task = asyncio.create_task(self.complete(body))
                leaving.push_async_callback(_leave, task)
                tasks.append(task)
                await self.loaded(len(tasks))
            if not held:
                await self.operate("/resume")
            yield tasks

    async def settle(self) -> None:
        """Have nothing inside and nothing held."""
        await self.operate("/wake_up")
        await self.loaded(0)
        await self.queued(0, 0)


async def _leave(task: asyncio.Task[Completion]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


_Test = Callable[[VllmClient], Awaitable[None]]


def caught_in_the_act(
    test: _Test,
) -> _Test:
    """Try again: on few cores a server may be through before anybody looks (a process beside the real one has
    waited 3 s for its turn while the engine computed, one beside the simulated one a second for the machine).
    """

    @functools.wraps(test)
    async def attempts(vllm: VllmClient) -> None:
        for left in reversed(range(3 if vllm.server.simulated else 8)):
            try:
                return await test(vllm)
            except (AssertionError, BackendError):
                if not left:
                    raise
                await vllm.settle()
        return None

    return attempts
