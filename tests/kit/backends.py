"""A backend under test, real or simulated, seen the same way, and ways to use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import JsonValue

from services.simulator.backend import SimulatedBackend
from services.simulator.host import SimulatedHost
from shared.backends.completion import CompletionCall
from shared.config import SimulatorSettings
from shared.registry import Registration
from shared.states import BackendType
from tests.kit.waiting import wait_until


@dataclass(frozen=True, slots=True)
class Backend:
    """Where it is and what it was started with; ``context_tokens`` of one slot."""

    url: str
    name: str
    slots: int
    context_tokens: int
    simulated: bool


def registration(name: str = "small", **changes: Any) -> Registration:
    """A simulated model: 2 slots of 4,096 tokens, 2,000 tokens/s."""
    fields: dict[str, Any] = {
        "name": name,
        "vram_gb": 2.0,
        "port": 1,
        "slots": 2,
        "context_tokens": 4096,
        "tokens_per_second": 2000.0,
        "simulated": True,
    }
    return Registration(**{**fields, **changes})


@asynccontextmanager
async def simulated(name: str = "small", **changes: Any) -> AsyncIterator[SimulatedBackend]:
    """One simulated model on a free port, ready at once."""
    settings = SimulatorSettings(load_s=0)
    async with SimulatedHost([registration(name, **changes)], settings, free_ports=True) as host:
        yield host.backends[name]


def call(base_url: str, body: Mapping[str, JsonValue] | None = None, **changes: Any) -> CompletionCall:
    """A completion call with short time-outs; without ``body`` a prompt of two words and 8 tokens."""
    fields: dict[str, Any] = {
        "base_url": base_url,
        "backend": BackendType.LLAMA_CPP,
        "upstream_name": "small",
        "body": body or {"prompt": "the queue", "max_tokens": 8},
        "api_key": None,
        "connect_timeout_s": 2.0,
        "idle_timeout_s": 10.0,
        "max_result_bytes": 1_000_000,
    }
    return CompletionCall(**{**fields, **changes})


async def busy_slots(http: aiohttp.ClientSession, url: str) -> int:
    """Slots that a llama.cpp says are processing."""
    async with http.get(f"{url}/slots") as response:
        return sum(1 for slot in await response.json() if slot["is_processing"])


async def gauge(http: aiohttp.ClientSession, url: str, name: str) -> float:
    """One unlabelled metric of a llama.cpp."""
    async with http.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def wait_idle(http: aiohttp.ClientSession, url: str) -> None:
    """Wait until nothing runs or waits inside a llama.cpp."""

    async def idle() -> bool:
        names = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
        return not any([await gauge(http, url, name) for name in names])

    await wait_until(idle, f"{url} is idle")


@asynccontextmanager
async def long_streams(http: aiohttp.ClientSession, url: str, count: int) -> AsyncIterator[None]:
    """So many clients that read long answers while the block runs, and leave at its end."""
    async with AsyncExitStack() as leaving:
        for _ in range(count):
            leaving.push_async_callback(_leave, asyncio.create_task(_read_long_answer(http, url)))
        yield


async def _leave(client: asyncio.Task[None]) -> None:
    client.cancel()
    await asyncio.gather(client, return_exceptions=True)


async def _read_long_answer(http: aiohttp.ClientSession, url: str) -> None:
    body = {"prompt": "the queue", "max_tokens": 4000, "stream": True}
    async with http.post(f"{url}/v1/completions", json=body) as response:
        async for _ in response.content.iter_any():
            pass
