"""The OpenAI-compatible calls through all processes, on simulated models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.simulation import Simulation
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

MESSAGES = [{"role": "user", "content": "what is a queue"}]
PATH = "/v1/chat/completions"


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    first, second, third = free_ports(3)
    models = [
        simulated_model("alpha", first),
        simulated_model("beta", second, agent_types=["Chat", "MedicalQA"], upstream_name="beta-upstream"),
        simulated_model("slow", third, slots=1, tokens_per_second=10, agent_types=["Slow"]),
    ]
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, simulated_config(models), services) as stack:
        yield stack

        async def free() -> bool:
            return not any([await stack.in_flight(name) for name in ("alpha", "beta", "slow")])

        await wait_until(free, "every slot is given back")


async def _post(stack: Stack, body: Json, path: str = PATH, *, api: str = "") -> tuple[int, Any, str]:
    async with stack.http.post((api or stack.api) + path, json=body) as answer:
        return answer.status, answer.headers, await answer.text()


async def test_every_call_is_answered_by_a_model_that_a_decision_chose(stack: Stack) -> None:
    chat = {"model": "auto:MedicalQA", "messages": MESSAGES, "max_tokens": 4}
    status, headers, text = await _post(stack, chat)
    answer = json.loads(text)
    job = await stack.ended(headers["x-orchestrator-job-id"])

    assert (status, answer["object"], answer["usage"]["completion_tokens"]) == (200, "chat.completion", 4)
    assert headers["x-orchestrator-model"] == job["decision"]["model"] == "beta"
    assert headers["x-orchestrator-reason"] == job["decision"]["reason"]
    assert (job["state"], job["result"]["text"], job["result"]["response"]) == ("succeeded", None, None)
    assert job["result"]["usage"]["completion_tokens"] == 4

    status, headers, text = await _post(stack, {**chat, "stream": True, "model": "alpha"})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert text.endswith("data: [DONE]\n\n")
    assert "[simulated alpha]" in text

    status, _, text = await _post(
        stack, {"model": "alpha", "prompt": "hi", "max_tokens": 2}, "/v1/completions"
    )
    assert (status, json.loads(text)["choices"][0]["text"].split()[0]) == (200, "[simulated")
    status, _, text = await _post(stack, {"model": "alpha", "input": ["a", "b"]}, "/v1/embeddings")
    assert (status, len(json.loads(text)["data"])) == (200, 2)
    status, _, text = await _post(stack, {"model": "alpha", "input": "hi"}, "/v1/responses")
    assert (status, json.loads(text)["error"]["message"]) == (404, "File Not Found")


async def test_a_client_that_leaves_frees_its_slot_within_a_second(stack: Stack) -> None:
    simulation = Simulation(stack)
    body = {"model": "slow", "messages": MESSAGES, "max_tokens": 2000}
    for stream in (True, False):
        asked = asyncio.create_task(_post(stack, {**body, "stream": stream}))

        async def busy() -> bool:
            return await simulation.busy_slots("slow") == 1

        async def free() -> bool:
            return await simulation.busy_slots("slow") == 0

        await wait_until(busy, "the backend generates")
        with Stopwatch(*stack.pids) as left:
            asked.cancel()
            await wait_until(free, "the backend's slot is free")
            assert left.elapsed_s < 1


async def test_a_dead_backend_is_replaced_by_another_before_the_client_hears_of_it(stack: Stack) -> None:
    await Simulation(stack).fault("alpha", kind="refuse")
    answers = await asyncio.gather(
        *(_post(stack, {"model": "auto:Chat", "messages": MESSAGES, "max_tokens": 2}) for _ in range(12))
    )

    assert {(status, headers["x-orchestrator-model"]) for status, headers, _ in answers} == {(200, "beta")}


async def test_sixty_clients_at_once_are_all_answered(stack: Stack) -> None:
    body = {"model": "auto:Chat", "messages": MESSAGES, "max_tokens": 8}
    answers = await asyncio.gather(
        *(_post(stack, {**body, "stream": number % 2 == 0, "user": f"u{number}"}) for number in range(60))
    )

    assert [status for status, _, _ in answers] == [200] * 60
    assert {headers["x-orchestrator-model"] for _, headers, _ in answers} == {"alpha", "beta"}
    for _, headers, _ in answers:
        assert (await stack.ended(headers["x-orchestrator-job-id"]))["state"] == "succeeded"


async def test_a_stopped_api_leaves_no_job_running(tmp_path: Path, redis_url: str) -> None:
    model = simulated_model("slow", free_ports(1)[0], slots=1, tokens_per_second=10)
    services = ("simulator", "monitor", "router")
    async with running_stack(tmp_path, redis_url, simulated_config([model]), (*services, "api")) as stack:
        port = free_ports(1)[0]
        extra = stack.start("api", environ={"ORCH_API__PORT": str(port)}, instance="second")
        url = f"http://127.0.0.1:{port}"
        await stack.ready(url)
        body = {"model": "slow", "messages": MESSAGES, "max_tokens": 2000, "stream": True}
        async with stack.http.post(url + PATH, json=body) as running:
            assert running.status == 200, await running.text()
            assert await running.content.readline()
            waiting = asyncio.create_task(_post(stack, {**body, "stream": False}, api=url))
            await _one_waits_and_one_runs(stack, waiting)
            assert await stack.stop(extra) == 0
            text = await running.text()
        status, _, refused = await waiting
        assert status == 503, refused

        assert '"code":"api_stopped"' in text
        assert text.endswith("data: [DONE]\n\n")
        assert await stack.jobs.counts() == (0, 0)
        assert await stack.in_flight("slow") == 0


async def _one_waits_and_one_runs(stack: Stack, waiting: asyncio.Task[Any]) -> None:
    """Wait for it; a request that is answered instead of waiting fails with its answer."""
    counts = (0, 0)

    async def reached() -> bool:
        nonlocal counts
        counts = await stack.jobs.counts()
        assert not waiting.done(), f"answered instead of waiting: {waiting.result()}"
        return counts == (1, 1)

    try:
        await wait_until(reached, "one waits and one runs")
    except AssertionError as error:
        kinds = [(event.fields["job_id"], event.fields["type"]) for event in await stack.events()]
        raise AssertionError(f"{error}; {counts} wait and run, {kinds}, {stack.output('second')}") from None
