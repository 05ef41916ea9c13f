"""A vLLM beside a llama.cpp on one card, through the whole stack: who gets what, and what holds it back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.backends.exposition import parse, total
from shared.placement.picture import FRESH_S
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.journal import Journal
from tests.kit.simulation import Simulation
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.waiting import wait_until

POOL_GB = 0.92 * 24
"""What vLLM takes of a card of 24 GB unless told otherwise."""

LEARNED = ("avg_latency_ms", "avg_output_tokens", "seconds_per_prompt_token", "seconds_per_output_token")


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    """llama.cpp ``alpha`` and vLLM ``big`` of the same speed, and little else left on the card."""
    ports = free_ports(2)
    models = [
        simulated_model("alpha", ports[0], vram_gb=0.5, tokens_per_second=1000),
        simulated_model("big", ports[1], vram_gb=POOL_GB, backend="vllm", tokens_per_second=1000),
    ]
    config = simulated_config(models, simulator={"speedup": 2.0})
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, config, services) as stack:
        await _seen(stack, "alpha", "resident")
        await _seen(stack, "big", "resident")
        yield stack
        assert Journal(await stack.events()).faults() == []


async def _seen(stack: Stack, name: str, *residences: str) -> Json:
    """The model's status once the monitor has published one of these."""

    async def published() -> Json | None:
        async with stack.http.get(f"{stack.api}/v1/gpu/status") as answer:
            status: Json = (await answer.json())["models"][name]
        return status if status["residence"] in residences else None

    return await wait_until(published, f"{name} is {' or '.join(residences)}")


async def _served_by(stack: Stack, **job: Any) -> str:
    ended = await stack.ended(await stack.submit(**{"prompt": "hi", "max_tokens": 8, **job}))
    assert ended["state"] == "succeeded", ended
    return str(ended["decision"]["model"])


async def test_batches_go_to_vllm_and_interactive_jobs_to_llama_cpp(stack: Stack) -> None:
    """As wide and as fast as each other, whatever a busy machine made of the answers so far."""
    kinds: list[Json] = [{"mode": "batch"}, {"mode": "interactive"}, {"priority": 1}, {}]
    served = []
    for kind in kinds:
        served.append(await _served_by(stack, agent_type="Chat", **kind))
        for name in ("alpha", "big"):
            await stack.redis.hdel(stack.keys.model(name), *LEARNED)
        await _no_picture_is_older()

    assert served == ["big", "alpha", "big", "alpha"]


async def _no_picture_is_older() -> None:
    """A router may decide on a picture of the fleet that is so old."""
    now = time.monotonic()
    await wait_until(lambda: time.monotonic() - now > 2 * FRESH_S, "pictures from before are too old")


async def test_an_idle_vllm_that_holds_92_percent_of_the_card_stops_nothing(stack: Stack) -> None:
    await Simulation(stack).level(pressure="normal", full="0")

    assert [await _served_by(stack, model=name) for name in ("alpha", "big")] == ["alpha", "big"]
    async with stack.http.get(f"{stack.api}/v1/gpu/status") as answer:
        card = (await answer.json())["gpu"]
    assert card["utilization_percent"] > 92
    assert 50 < card["effective_utilization_percent"] < 70


@pytest.mark.parametrize(
    ("order", "residence", "words", "told", "back"),
    [
        ({"residence": "sleeping"}, "sleeping", "it is sleeping", "POST /wake_up", {"residence": "resident"}),
        ({"paused": True}, "draining", "it takes no new work (paused", "POST /resume", {"paused": False}),
    ],
    ids=["asleep", "paused"],
)
async def test_one_that_sleeps_or_is_paused_is_left_alone_until_it_is_back(
    stack: Stack, order: Json, residence: str, words: str, told: str, back: Json
) -> None:
    """Its port answers that it is healthy all the while, and what is sent to it would hang."""
    simulation = Simulation(stack)
    await simulation.model("big", **order)
    status = await _seen(stack, "big", residence)
    held = await simulation.held(await stack.submit(prompt="hi", model="big", max_tokens=8))
    elsewhere = await _served_by(stack, agent_type="Chat", mode="batch")
    await _seen(stack, "big", residence)  # nothing that was done here has woken it

    assert told in status["probe_error"]
    assert held["decision"]["code"] == "not_resident"
    assert words in held["decision"]["reason"]
    assert elsewhere == "alpha"

    await simulation.model("big", **back)
    ended = await stack.ended(held["job_id"])
    assert (ended["state"], ended["decision"]["model"], ended["tries"]) == ("succeeded", "big", 0)


async def test_a_paused_vllm_still_holds_its_memory_which_is_no_pressure(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.level(pressure="normal")
    await simulation.model("big", paused=True)
    await _seen(stack, "big", "draining")

    assert await _served_by(stack, model="alpha") == "alpha"
    assert (await stack.fleet.level("host/0"))["pressure"] == "normal"


async def test_a_dead_engine_is_avoided_and_serves_again_when_it_was_restarted(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.fault("big", kind="engine_death")
    await _seen(stack, "big", "failed", "unloaded")
    held = await simulation.held(await stack.submit(prompt="hi", model="big", max_tokens=8))
    elsewhere = await _served_by(stack, agent_type="Chat", mode="batch")
    await _seen(stack, "big", "unloaded")

    assert held["decision"]["code"] == "not_resident"
    assert elsewhere == "alpha"

    await simulation.model("big", residence="resident")
    ended = await stack.ended(held["job_id"])
    assert (ended["state"], ended["decision"]["model"]) == ("succeeded", "big")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ({"fault": {"kind": "engine_death", "after_tokens": 20}}, "EngineCore encountered an issue"),
        ({"residence": "sleeping"}, "aborted the answer"),
    ],
    ids=["engine death", "put to sleep"],
)
async def test_an_answer_that_breaks_off_is_begun_anew_elsewhere(
    stack: Stack, harm: Json, words: str
) -> None:
    """vLLM ends both streams in good order, with status 200."""
    simulation = Simulation(stack)
    await simulation.model("big", tokens_per_second=50)
    if "fault" in harm:
        await simulation.model("big", **harm)
    job = await stack.submit(prompt="hi", agent_type="Chat", mode="batch", max_tokens=200)

    port = next(model.port for model in stack.settings.models if model.name == "big")

    async def writes() -> bool:
        async with stack.http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            return total(parse(await answer.text()), "vllm:generation_tokens_total") not in (None, 0)

    if "fault" not in harm:
        await wait_until(writes, "it writes")
        await simulation.model("big", **harm)
    ended = await stack.ended(job)

    assert (ended["state"], ended["decision"]["model"], ended["tries"]) == ("succeeded", "alpha", 1)
    assert ended["result"]["usage"]["completion_tokens"] == 200
    (retried,) = [entry.fields for entry in await stack.events(job) if entry.fields["type"] == "job.retried"]
    assert words in retried["reason"]
