"""A model whose host has no monitor: it says so, gives way to those that answer, and heads nobody's hold."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.configs import free_ports, simulated_config
from tests.kit.simulation import Simulation
from tests.kit.stack import Stack, running_stack
from tests.kit.waiting import wait_until


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    """Beside alpha and beta a ghost with 64 slots, registered a minute ago for a host that is none."""
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, simulated_config(), services) as stack:
        (port,) = free_ports(1)
        entry = {"port": port, "host": "typo", "slots": 64, "agent_types": ["Chat"], "context_tokens": 4096}
        async with stack.http.put(f"{stack.api}/v1/gpu/models/ghost", json=entry) as answer:
            assert answer.status == 201
        name = stack.keys.model("ghost")
        registered = int(str(await stack.redis.hget(name, "registered_ms")))
        await stack.redis.hset(name, "registered_ms", str(registered - 60_000))
        yield stack


async def test_it_takes_nothing_from_models_that_answer_and_says_why(stack: Stack) -> None:
    jobs = [await stack.submit(prompt="hi", agent_type="Chat", max_tokens=4) for _ in range(6)]
    ended = await asyncio.gather(*(stack.ended(job) for job in jobs))

    assert {job["state"] for job in ended} == {"succeeded"}
    assert {job["decision"]["model"] for job in ended} <= {"alpha", "beta"}
    assert await stack.redis.hget(stack.keys.model("ghost"), "failure_count") is None
    model = (await _json(stack, "/v1/gpu/status"))["models"]["ghost"]
    assert model["residence"] == "unknown"
    assert re.search(r"no monitor has probed it for \d+ s", model["detail"])
    assert "start one on its host 'typo', or correct that host" in model["detail"]
    since = re.compile(r"\d+ s")  # a second may go by between the two calls
    same = (await _json(stack, "/v1/gpu/models/ghost"))["detail"]
    assert since.sub("", same) == since.sub("", model["detail"])
    ranked = (await _json(stack, "/v1/gpu/models-optimal?agent_type=Chat"))["models"]
    assert [(one["model"], one["code"]) for one in ranked][-1] == ("ghost", "unprobed")
    actions = (await _json(stack, "/v1/gpu/rebalance"))["actions"]
    assert [(one["code"], one["model"]) for one in actions] == [("unknown_readings", "ghost")]


async def test_what_waits_for_other_models_does_not_wait_for_it(stack: Stack) -> None:
    """The card is full; the ghost is tried, refuses every connection, and is shut out by its breaker."""
    simulation = Simulation(stack)
    await simulation.gpu(utilization=0.96)
    await simulation.level(full="1")

    job = await stack.submit(prompt="hi", agent_type="Chat", max_tokens=4)

    async def waits_for_memory() -> dict[str, Any] | None:
        queue = (await _json(stack, "/v1/gpu/status"))["queue"]["targets"]
        hold: dict[str, Any] | None = queue.get("auto:Chat", {}).get("hold")
        return hold if hold is not None and hold["code"] == "memory_full" else None

    hold = await wait_until(waits_for_memory, "it is held for the card")
    assert hold["reason"].startswith(("alpha waits", "beta waits"))
    await simulation.gpu(utilization=0.60)
    ended = await stack.ended(job)
    assert (ended["state"], ended["tries"]) == ("succeeded", 0)


async def _json(stack: Stack, path: str) -> dict[str, Any]:
    async with stack.http.get(f"{stack.api}{path}") as answer:
        assert answer.status == 200
        body: dict[str, Any] = await answer.json()
        return body
