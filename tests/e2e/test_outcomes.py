"""Each way for a backend to misbehave ends as the outcome table says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.configs import simulated_config
from tests.kit.journal import Journal
from tests.kit.simulation import Simulation
from tests.kit.stack import Stack, running_stack


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    config = simulated_config(router={"idle_timeout_s": 2.0})
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, config, services) as stack:
        yield stack
        assert Journal(await stack.events()).faults() == []
        assert await stack.in_flight("alpha") == 0
        assert await stack.in_flight("beta") == 0


async def test_a_refused_connection_goes_to_another_backend_at_once_and_is_not_charged(stack: Stack) -> None:
    await Simulation(stack).fault("beta", kind="refuse")

    ended = [
        await stack.ended(await stack.submit(prompt="hi", agent_type="Chat", max_tokens=4)) for _ in range(6)
    ]

    assert {job["state"] for job in ended} == {"succeeded"}
    assert {job["decision"]["model"] for job in ended} == {"alpha"}
    assert {job["tries"] for job in ended} == {0}


async def test_a_job_for_a_model_that_refuses_waits_for_it_uncharged_and_then_runs(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.fault("beta", kind="refuse")
    job_id = await stack.submit(prompt="hi", model="beta", max_tokens=4)
    held = await simulation.held(job_id)
    assert held["state"] == "queued"
    await simulation.fault("beta", kind=None)

    job = await stack.ended(job_id)

    assert (job["state"], job["tries"]) == ("succeeded", 0)


async def test_an_internal_error_is_retried_and_charged(stack: Stack) -> None:
    await Simulation(stack).fault("beta", kind="status", status=500, times=1)

    job = await stack.ended(await stack.submit(prompt="hi", model="beta", max_tokens=4))

    assert (job["state"], job["attempt"], job["tries"]) == ("succeeded", 2, 1)
    assert await stack.event_types(job["job_id"]) == [
        "job.queued",
        "job.started",
        "job.retried",
        "job.started",
        "job.succeeded",
    ]


async def test_a_job_that_keeps_failing_ends_dead_with_a_dead_letter(stack: Stack) -> None:
    await Simulation(stack).fault("beta", kind="status", status=500)

    job = await stack.ended(
        await stack.submit(prompt="hi", model="beta", max_tokens=4, max_attempts=2), timeout_s=30
    )

    assert (job["state"], job["tries"], job["error"]["type"]) == ("dead", 2, "backend_error")
    assert [letter["job_id"] for letter in await stack.dead_letters()] == [job["job_id"]]


async def test_service_unavailable_is_honoured_for_as_long_as_it_asks_and_not_charged(stack: Stack) -> None:
    await Simulation(stack).fault("beta", kind="status", status=503, retry_after_s=1, times=1)

    job = await stack.ended(await stack.submit(prompt="hi", model="beta", max_tokens=4))

    assert (job["state"], job["tries"]) == ("succeeded", 0)
    started = [
        int(entry.fields["ts_ms"])
        for entry in await stack.events(job["job_id"])
        if entry.fields["type"] == "job.started"
    ]
    assert len(started) == 2
    assert started[1] - started[0] >= 1000


async def test_a_rejected_request_fails_for_good_with_the_backends_words(stack: Stack) -> None:
    await Simulation(stack).fault("beta", kind="status", status=400)

    job = await stack.ended(await stack.submit(prompt="hi", model="beta", max_tokens=4))

    assert (job["state"], job["attempt"], job["error"]["type"]) == ("failed", 1, "backend_rejected")
    assert job["error"]["detail"]


async def test_a_prompt_that_exceeds_the_context_fails_with_the_backends_count(stack: Stack) -> None:
    job = await stack.ended(await stack.submit(prompt="word " * 20_000, model="beta", max_tokens=4))

    assert (job["state"], job["error"]["type"]) == ("failed", "backend_rejected")
    assert "context" in job["error"]["detail"]


@pytest.mark.parametrize("kind", ["hang", "die_mid_stream", "sse_error"])
async def test_a_backend_that_breaks_off_is_charged_and_tried_again(stack: Stack, kind: str) -> None:
    await Simulation(stack).fault("beta", kind=kind, times=1)

    job = await stack.ended(await stack.submit(prompt="hi", model="beta", max_tokens=8))

    assert (job["state"], job["attempt"], job["tries"]) == ("succeeded", 2, 1)
    assert job["result"]["usage"]["completion_tokens"] == 8
