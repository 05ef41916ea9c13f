"""A vLLM server that is paused, asleep or dead: healthy to look at, and nothing sent to it comes back.

On the real server (CPU build, ``make test-vllm``) and on the simulated one; told in ``docs/vllm.md``.
"""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from shared.backends.completion import Completion
from shared.backends.errors import BackendError, Broken, Interrupted
from shared.states import Residence
from tests.kit.vllm_backends import VllmClient, caught_in_the_act
from tests.kit.waiting import wait_until

DONE = "data: [DONE]"


async def results(tasks: list[asyncio.Task[Completion]]) -> list[Completion | BaseException]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_queued_stream_has_its_headers_before_its_turn(
    vllm: VllmClient, http: aiohttp.ClientSession
) -> None:
    """Unlike llama.cpp: the time to the headers says nothing of the queue."""
    await vllm.operate("/pause?mode=keep")
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 2, "stream": True}
    async with http.post(f"{vllm.server.url}/v1/completions", json=body) as response:
        assert response.status == 200
        first = asyncio.create_task(response.content.readany())
        await vllm.loaded(1)
        assert not first.done()
        await vllm.operate("/resume")
        assert (await first).startswith(b"data: {")


@caught_in_the_act
async def test_a_paused_engine_looks_healthy_keeps_its_gauges_and_lets_requests_hang(
    vllm: VllmClient,
) -> None:
    async with vllm.inside(6, max_tokens=300) as tasks:
        await vllm.queued(4, 2)
        assert await vllm.operate("/pause?mode=keep") == {"status": "paused"}
        assert await vllm.status("/health") == (200, "")
        assert [await vllm.get(path) for path in ("/is_paused", "/is_sleeping")] == [
            {"is_paused": True},
            {"is_sleeping": True},
        ]
        written = await vllm.metric("generation_tokens_total")
        seen = await vllm.probe()
        assert (seen.residence, seen.running, seen.waiting) == (Residence.DRAINING, None, None)
        assert seen.error is not None
        assert "paused" in seen.error
        assert await vllm.queue() == (4, 2)
        assert await vllm.metric("generation_tokens_total") == written
        assert not any(task.done() for task in tasks)

        assert await vllm.operate("/resume") == {"status": "resumed"}
        answers = await asyncio.gather(*tasks)

    assert {answer.output_tokens for answer in answers} == {300}
    assert (await vllm.probe()).residence is Residence.RESIDENT


async def test_a_request_that_comes_during_a_pause_is_in_no_gauge_but_in_load(vllm: VllmClient) -> None:
    await vllm.operate("/pause")
    async with vllm.inside(1, max_tokens=5, held=True) as tasks:
        assert await vllm.get("/load") == {"server_load": 1}
        assert await vllm.queue() == (0, 0)
        await vllm.operate("/resume")
        assert (await tasks[0]).output_tokens == 5


@caught_in_the_act
async def test_a_pause_that_waits_lets_the_running_ones_end_first(vllm: VllmClient) -> None:
    async with vllm.inside(5, max_tokens=200) as tasks:
        await vllm.queued(4, 1)
        await vllm.operate("/pause?mode=wait")
        assert await vllm.queue() == (0, 1)
        done = [task for task in tasks if task.done()]
        assert [task.result().output_tokens for task in done] == [200] * 4
        await vllm.operate("/resume")
        await asyncio.gather(*tasks)


@caught_in_the_act
async def test_sleep_aborts_what_is_inside_and_our_client_takes_no_abort_for_an_answer(
    vllm: VllmClient,
) -> None:
    aborted = await vllm.metric("request_success_total")
    async with vllm.inside(6, max_tokens=1500) as tasks:
        await vllm.queued(4, 2)
        assert await vllm.operate("/sleep?level=1") == {"status": "sleeping", "level": 1}
        ended = await results(tasks)

    assert all(isinstance(end, BackendError) for end in ended), ended
    assert [type(end) for end in ended].count(Interrupted) == 4
    assert await vllm.metric("request_success_total") == aborted + 6  # of which none succeeded
    await vllm.operate("/wake_up")


@caught_in_the_act
async def test_a_stream_that_is_aborted_before_its_turn_is_an_empty_one(vllm: VllmClient) -> None:
    async with vllm.inside(4, max_tokens=1500):
        await vllm.queued(4, 0)
        queued = asyncio.create_task(vllm.ask(prompt="hi", max_tokens=2, stream=True))
        await vllm.queued(4, 1)
        await vllm.operate("/pause")
        assert await queued == (200, [DONE])
    await vllm.operate("/resume")


async def test_a_sleeper_is_healthy_is_not_woken_and_lets_requests_hang(vllm: VllmClient) -> None:
    await vllm.operate("/sleep?level=1")
    seen = [await vllm.probe() for _ in range(2)]
    async with vllm.inside(1, max_tokens=3, held=True) as tasks:
        assert await vllm.status("/health") == (200, "")
        assert await vllm.get("/is_sleeping") == {"is_sleeping": True}
        assert await vllm.queue() == (0, 0)
        assert not tasks[0].done()
        assert await vllm.operate("/wake_up") == {"status": "awake", "tags": None}
        assert (await tasks[0]).output_tokens == 3

    assert [probe.residence for probe in seen] == [Residence.SLEEPING] * 2
    assert (seen[0].running, seen[0].kv_use, seen[0].context_tokens) == (None, None, 2048)
    assert seen[0].error is not None
    assert "asleep" in seen[0].error
    assert await vllm.get("/is_sleeping") == {"is_sleeping": False}
    assert (await vllm.probe()).residence is Residence.RESIDENT


@pytest.mark.parametrize(("level", "state"), [(0, None), (1, "weights_offloaded"), (2, "discard_all")])
async def test_the_depth_of_sleep_is_in_the_metrics(vllm: VllmClient, level: int, state: str | None) -> None:
    """Level 0 holds the scheduler and keeps the memory: for us a pause."""
    await vllm.operate(f"/sleep?level={level}")
    samples = await vllm.metrics()
    seen = await vllm.probe()
    await vllm.operate("/wake_up")

    states = {labels.split('sleep_state="')[1].rstrip('"'): value
              for name, labels, value in samples if name == "vllm:engine_sleep_state"}  # fmt: skip
    assert states == {name: float(name == state) for name in ("awake", "weights_offloaded", "discard_all")}
    assert seen.residence is (Residence.SLEEPING if level else Residence.DRAINING)


@pytest.mark.parametrize("path", ["/sleep?level=7", "/sleep?mode=gently", "/pause?mode=gently"])
async def test_wrong_orders_are_bad_requests(
    vllm: VllmClient, http: aiohttp.ClientSession, path: str
) -> None:
    async with http.post(vllm.server.url + path) as response:
        answer = await response.json()

    assert (response.status, answer["error"]["type"]) == (400, "Bad Request")
    assert answer["error"]["param"].startswith("query.")
    assert await vllm.get("/is_paused") == {"is_paused": False}


async def test_a_dead_engine_ends_streams_with_an_error_inside_and_then_its_port_is_shut(
    vllm: VllmClient,
) -> None:
    """The last test of the file: the real server is gone afterwards and would be started again."""
    await vllm.operate("/pause?mode=keep")
    async with vllm.inside(6, max_tokens=1900, held=True) as tasks:
        vllm.server.kill_engine()
        ended = await results(tasks)

    assert {type(end) for end in ended} == {Broken}
    words = [str(end) for end in ended]
    assert all("EngineCore encountered an issue" in word for word in words)
    seen: list[Residence] = []

    async def shut() -> bool:
        found = (await vllm.probe()).residence
        if not seen or seen[-1] is not found:
            seen.append(found)
        return found is Residence.UNLOADED

    await wait_until(shut, "the port is shut", timeout_s=30.0)
    assert seen == [Residence.FAILED, Residence.UNLOADED]
