"""Cancelling and deadlines, while a job waits and while it runs; the backend's slot comes free."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.simulation import Simulation
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

LONG = {"prompt": "hi", "model": "slow", "max_tokens": 2000}
"""200 seconds of generation at 10 tokens a second."""


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    model = simulated_model("slow", free_ports(1)[0], slots=1, tokens_per_second=10)
    async with running_stack(
        tmp_path, redis_url, simulated_config([model]), ("simulator", "monitor", "router", "api")
    ) as stack:
        yield stack
        assert await stack.in_flight("slow") == 0


async def _running(stack: Stack, **job: object) -> str:
    job_id = await stack.submit(**{**LONG, **job})
    simulation = Simulation(stack)

    async def generating() -> bool:
        return await simulation.busy_slots("slow") == 1

    await wait_until(generating, "the backend generates")
    return job_id


async def _freed(stack: Stack) -> None:
    simulation = Simulation(stack)

    async def free() -> bool:
        return await simulation.busy_slots("slow") == 0

    await wait_until(free, "the backend's slot is free")


async def _delete(stack: Stack, job_id: str) -> tuple[int, Json]:
    async with stack.http.delete(f"{stack.api}/v1/jobs/{job_id}") as answer:
        return answer.status, await answer.json(content_type=None)


async def test_cancelling_a_running_job_frees_its_backend_slot_within_a_second(stack: Stack) -> None:
    job_id = await _running(stack)

    with Stopwatch(*stack.pids) as asked:
        status, _ = await _delete(stack, job_id)
        await _freed(stack)
        assert asked.elapsed_s < 1.0

    assert status == 202
    assert (await stack.ended(job_id))["state"] == "cancelled"
    assert (await stack.event_types(job_id))[-2:] == ["job.cancel_requested", "job.cancelled"]


async def test_cancelling_a_waiting_job_ends_it_at_once(stack: Stack) -> None:
    running = await _running(stack)
    waiting = await stack.submit(**LONG)

    status, body = await _delete(stack, waiting)

    assert (status, body["state"]) == (200, "cancelled")
    assert "job.started" not in await stack.event_types(waiting)
    assert (await _delete(stack, waiting))[0] == 200
    await _delete(stack, running)
    await stack.ended(running)
    assert (await _delete(stack, "nobody"))[0] == 404


async def test_a_running_job_ends_at_its_deadline_and_frees_the_backend(stack: Stack) -> None:
    with Stopwatch(*stack.pids) as watch:
        job_id = await _running(stack, deadline_s=2.5)

        job = await stack.ended(job_id)
        await _freed(stack)

        assert (job["state"], job["error"]["type"]) == ("expired", "deadline")
        assert 2400 <= job["timings"]["total_ms"] < 3400 + watch.away_s * 1000


async def test_a_waiting_job_ends_at_its_deadline_without_having_run(stack: Stack) -> None:
    running = await _running(stack)
    waiting = await stack.submit(**{**LONG, "deadline_s": 0.5})

    job = await stack.ended(waiting)

    assert (job["state"], job["attempt"]) == ("expired", 0)
    await _delete(stack, running)
    await stack.ended(running)
