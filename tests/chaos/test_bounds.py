"""Twenty thousand jobs leave bounded streams, no key without a TTL, and processes that did not grow."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from shared.keys import PATTERNS, PERMANENT, STATIC
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.stack import Stack
from tests.kit.waiting import wait_until

JOBS = 20_000
WARM_UP = 4_000
POSTERS = 16
KEPT = {"requests": 1_000, "events": 3_000, "decisions": 1_000, "gpu_samples": 500, "backend_samples": 500}
NODE = 200
"""Approximate trimming works per node of 100 entries."""
GROWTH_MB = 24.0
"""Allowed between 4,000 and 20,000 jobs: allocator noise; a leak of 2 kB a job would be 32 MB."""


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    model = simulated_model("quick", free_ports(1)[0], slots=64)
    config = {
        **simulated_config([model], jobs={"retention_s": 1.0}, history=KEPT, log={"level": "WARNING"}),
        "redis": {"url": redis_url},
    }
    async with Stack(tmp_path, config) as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_twenty_thousand_jobs_leave_nothing_behind(stack: Stack) -> None:
    stack.start("simulator")
    stack.start("monitor")
    watched = [psutil.Process(stack.start(name).pid) for name in ("router", "api")]
    await stack.ready()

    await _run_jobs(stack, WARM_UP)
    before = [process.memory_info().rss for process in watched]
    await _run_jobs(stack, JOBS - WARM_UP)
    after = [process.memory_info().rss for process in watched]

    # Requests are trimmed behind the acks, every few seconds; the others while they are written.
    await wait_until(lambda: _within(stack, "requests"), "the request stream is trimmed", timeout_s=60)
    for name in KEPT:
        assert await _within(stack, name), f"{name} has {await _length(stack, name)} entries"
    await wait_until(lambda: _nothing_left(stack), "every ended job's keys are gone", timeout_s=60)
    assert await _without_ttl(stack) == set()
    growth = [(late - early) / 2**20 for early, late in zip(before, after, strict=True)]
    assert max(growth) < GROWTH_MB, f"router and api grew by {growth} MB"


async def _run_jobs(stack: Stack, count: int) -> None:
    numbers = iter(range(count))

    async def poster() -> None:
        for _ in numbers:
            status, body = await stack.post({"prompt": "hi", "max_tokens": 2})
            while status == 429:
                status, body = await stack.post({"prompt": "hi", "max_tokens": 2})
            assert status == 202, body

    await asyncio.gather(*(poster() for _ in range(POSTERS)))

    async def idle() -> bool:
        return await stack.jobs.counts() == (0, 0)

    await wait_until(idle, f"{count} jobs end", timeout_s=240)


async def _length(stack: Stack, name: str) -> int:
    return int(await stack.redis.xlen(stack.keys.static(name)))


async def _within(stack: Stack, name: str) -> bool:
    return await _length(stack, name) <= KEPT[name] + NODE


async def _nothing_left(stack: Stack) -> bool:
    async for _ in stack.redis.scan_iter(match=stack.keys.job("*"), count=1000):
        return False
    return True


async def _without_ttl(stack: Stack) -> set[str]:
    """Keys that would live for ever and are not on the permanent list."""
    permanent = [stack.keys.static(name) for name in STATIC if name in PERMANENT]
    patterns = [stack.keys.of(name, "\0") for name in PATTERNS if name in PERMANENT]
    allowed = re.compile("|".join(re.escape(name).replace("\0", ".+") for name in [*permanent, *patterns]))
    found = set()
    async for key in stack.redis.scan_iter(count=1000):
        if not allowed.fullmatch(key) and await stack.redis.ttl(key) == -1:
            found.add(key)
    return found
