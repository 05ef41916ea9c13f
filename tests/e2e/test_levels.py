"""Critical memory pressure and critical heat hold jobs with their reason, and let them go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.configs import simulated_config
from tests.kit.simulation import Simulation
from tests.kit.stack import Stack, running_stack
from tests.kit.waiting import wait_until


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    async with running_stack(
        tmp_path, redis_url, simulated_config(), ("simulator", "monitor", "router", "api")
    ) as stack:
        yield stack


async def test_critical_memory_holds_the_bigger_model_while_the_smallest_serves(stack: Stack) -> None:
    """The smallest resident model goes on at 90 %; the other target waits and doesn't block it."""
    simulation = Simulation(stack)
    await simulation.gpu(utilization=0.90)
    await simulation.level(pressure="critical")

    waiting = await stack.submit(prompt="hi", model="beta", max_tokens=4)
    held = await simulation.held(waiting)
    served = await stack.ended(await stack.submit(prompt="hi", model="alpha", max_tokens=4))

    assert served["state"] == "succeeded"
    assert held["decision"]["code"] == "memory_critical"
    assert "critical" in held["decision"]["reason"]
    assert "job.held" in await stack.event_types(waiting)
    assert (await stack.job(waiting))["state"] == "queued"

    await simulation.gpu(utilization=0.60)
    released = await stack.ended(waiting)
    assert (released["state"], released["tries"]) == ("succeeded", 0)


async def test_a_full_card_holds_everything_and_lets_it_all_go(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.gpu(utilization=0.96)
    await simulation.level(full="1")

    jobs = [await stack.submit(prompt="hi", model=name, max_tokens=4) for name in ("alpha", "beta")]
    held = [await simulation.held(job) for job in jobs]

    assert {job["decision"]["code"] for job in held} == {"memory_full"}
    await simulation.gpu(utilization=0.60)
    ended = await asyncio.gather(*(stack.ended(job) for job in jobs))
    assert [job["state"] for job in ended] == ["succeeded", "succeeded"]


async def test_critical_heat_holds_everything_until_it_cools(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.gpu(temperature_c=86)
    await simulation.level(thermal="critical")

    jobs = [await stack.submit(prompt="hi", model=name, max_tokens=4) for name in ("alpha", "beta")]
    held = [await simulation.held(job) for job in jobs]

    assert {job["decision"]["code"] for job in held} == {"heat_critical"}
    assert all("86" in job["decision"]["reason"] for job in held)
    await simulation.gpu(temperature_c=60)
    ended = await asyncio.gather(*(stack.ended(job) for job in jobs))
    assert [job["state"] for job in ended] == ["succeeded", "succeeded"]


async def test_a_hold_is_written_once_however_many_samples_come(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.gpu(temperature_c=86)
    await simulation.level(thermal="critical")
    job = await stack.submit(prompt="hi", model="alpha", max_tokens=4)
    await simulation.held(job)
    first = await stack.redis.xlen(stack.keys.gpu_samples)

    async def more_samples() -> bool:
        return int(await stack.redis.xlen(stack.keys.gpu_samples)) >= first + 10

    await wait_until(more_samples, "ten more samples")
    assert (await stack.event_types(job)).count("job.held") == 1
