"""A benchmark of a server that answers to two names: measured under one of them, behind the jobs of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.api_fixture import Answer
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.stack import Stack, running_stack
from tests.kit.waiting import wait_until


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    (port,) = free_ports(1)
    twofold = simulated_model("twofold", port, serves=["left", "right"], slots=1, tokens_per_second=400.0)
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, simulated_config([twofold]), services) as stack:
        yield stack


async def test_a_server_with_two_names_is_measured_under_one_of_them_and_yields_to_both(
    stack: Stack,
) -> None:
    asked = asyncio.create_task(_post(stack, "model_name=left&duration_s=5&max_tokens=40&concurrency=4"))
    await wait_until(lambda: _is_busy(stack), "the benchmark is at work")

    refused = await _post(stack, "model_name=right&duration_s=1")
    live = [await stack.submit(prompt="hi", model="right", max_tokens=40) for _ in range(6)]
    ended = [await stack.ended(job) for job in live]
    body = (await asked).body

    assert "measured already" in refused.problem(409)["detail"]
    assert {job["state"] for job in ended} == {"succeeded"}
    assert body["yielded_ms"] > 0
    order = [
        entry.fields["job_id"] in live
        for entry in await stack.events()
        if entry.fields["type"] == "job.started"
    ]
    first, last = order.index(True), len(order) - 1 - order[::-1].index(True)
    # Only the four that were queued already when the first live job came may still be among them.
    assert order[first:last].count(False) <= 4


async def _post(stack: Stack, query: str) -> Answer:
    async with stack.http.post(f"{stack.api}/v1/gpu/benchmark-model?{query}") as got:
        return Answer(got.status, got.headers, await got.text())


async def _is_busy(stack: Stack) -> bool:
    return await stack.in_flight("twofold") > 0
