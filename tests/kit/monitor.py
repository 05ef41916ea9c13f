"""The monitor in the test's own process, over GPUs that the test sets through a real HTTP endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self

from aiohttp import web
from loguru import logger

from services.monitor.__main__ import monitor
from shared.config import Settings, parse
from shared.store.records import StreamEntry
from shared.store.streams import read_range
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

HOST = "host"
GPU = "host/0"
TOTAL_MB = 24576.0
INTERVAL_S = 0.1


def gpu(index: int = 0, *, use: float = 0.3, **changes: Any) -> dict[str, Any]:
    """A card of 24 GB at this share of memory, as the simulator describes one."""
    return {
        "index": index,
        "uuid": f"GPU-test-{index}",
        "name": "Test GPU",
        "memory_total_mb": TOTAL_MB,
        "memory_free_mb": TOTAL_MB * (1 - use),
        "utilization_percent": 12.5,
        "temperature_c": 50.0,
        "power_draw_w": 120.0,
        "power_limit_w": 350.0,
        "fan_percent": 40.0,
        "thermal_slowdown": False,
        "processes": [],
        "simulated": True,
        **changes,
    }


class GpuEndpoint:
    """Answers ``GET /gpu`` with ``cards``; ``heats`` raises the temperature by 0.1 with each answer."""

    def __init__(self) -> None:
        self.cards: list[dict[str, Any]] = [gpu()]
        self.answers = asyncio.Event()
        self.answers.set()
        self.heats = False
        self.reads = 0
        app = web.Application()
        app.router.add_get("/gpu", self._gpu)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        return int(self._runner.addresses[0][1])

    async def _gpu(self, _: web.Request) -> web.Response:
        await self.answers.wait()
        self.reads += 1
        if self.heats:
            for card in self.cards:
                card["temperature_c"] = round(card["temperature_c"] + 0.1, 1)
        return web.json_response(self.cards)


def monitor_settings(redis_url: str, gpu_port: int, **sections: Mapping[str, Any]) -> Settings:
    """Settings of a monitor that samples ten times a second from this endpoint."""
    config: dict[str, Any] = {
        "redis": {"url": redis_url},
        "gpu": {"source": "simulated", "interval_s": INTERVAL_S},
        "simulator": {"port": gpu_port},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return parse(config, "test")


@asynccontextmanager
async def running_monitor(
    settings: Settings, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """The monitor until the block is left; what made it end by itself is raised."""
    task = asyncio.create_task(monitor(settings, {"ORCH_HOST_NAME": HOST, **(environ or {})}))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """What is logged inside the block."""
    lines: list[str] = []
    sink = logger.add(
        lambda message: lines.append(str(message).rstrip("\n")), format="{message}", level="DEBUG"
    )
    try:
        yield lines
    finally:
        logger.remove(sink)


async def samples(store: Store) -> list[StreamEntry]:
    """Every GPU sample in the stream, oldest first."""
    return await read_range(store.redis, store.keys.gpu_samples, count=10_000)


async def latest(store: Store, gpu_id: str = GPU) -> Mapping[str, str]:
    """The hash of a GPU: its latest sample."""
    fields: Any = await store.redis.hgetall(store.keys.of("gpu", gpu_id))
    return {**fields}


async def level(store: Store, gpu_id: str = GPU, **wanted: str) -> Mapping[str, str]:
    """The level hash once it says this."""

    async def reached() -> Mapping[str, str] | None:
        found = await store.fleet.level(gpu_id)
        return found if found and wanted.items() <= found.items() else None

    return await wait_until(reached, f"GPU {gpu_id} has levels {wanted}")


async def read_again(gpus: GpuEndpoint, store: Store, times: int = 3) -> None:
    """Wait until so many more readings of what the endpoint says now are published."""
    reads, published = gpus.reads, len(await samples(store))

    async def enough() -> bool:
        return gpus.reads >= reads + times and len(await samples(store)) >= published + times

    await wait_until(enough, f"{times} more readings")
