"""The simulator follows the settings file: models come, move and go without cutting what runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.simulator.host import SimulatedHost
from shared.backends.kind import kind_of
from shared.config import SimulatorSettings
from shared.registry import Registration
from shared.states import BackendType
from tests.kit.backends import registration
from tests.kit.configs import free_ports
from tests.kit.monitor import log_lines
from tests.kit.waiting import wait_until

TOKENS = 300
LINGERS_S = 5.0
"""How long a model that leaves listens at least where nobody wants its port."""


@pytest.fixture
def ports() -> list[int]:
    return free_ports(4)


@pytest.fixture
def one(ports: list[int]) -> Registration:
    """Slow: an answer of 300 tokens takes about eight seconds, longer than a leaving model waits at least."""
    return registration("one", port=ports[1], tokens_per_second=40.0)


@pytest.fixture
async def host(ports: list[int], one: Registration) -> AsyncIterator[SimulatedHost]:
    async with SimulatedHost([one], SimulatorSettings(load_s=0, port=ports[0])) as host:
        yield host


async def answers(http: aiohttp.ClientSession, port: int) -> bool:
    return await kind_of(http, f"http://127.0.0.1:{port}", timeout_s=2.0) is not None


async def long_answer(http: aiohttp.ClientSession, port: int) -> int:
    body = {"prompt": "the queue", "max_tokens": TOKENS}
    async with http.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as response:
        return int(json.loads(await response.read())["usage"]["completion_tokens"])


async def test_a_model_that_moves_ends_its_answers_where_it_was(
    host: SimulatedHost, http: aiohttp.ClientSession, ports: list[int], one: Registration
) -> None:
    with log_lines() as lines:
        running = asyncio.create_task(long_answer(http, ports[1]))
        await wait_until(lambda: host.backends["one"].running == 1, "it is at work")
        await host.follow([one.model_copy(update={"port": ports[2]})])

        assert await answers(http, ports[2])
        assert await running == TOKENS
        await wait_until(lambda: [line for line in lines if "served no longer" in line], "it has left")
    assert not await answers(http, ports[1])
    held = [(holder.name, holder.memory_mb) for holder in host.card.holders]
    assert held == [("one", 2048.0)], "the one that left must not take its successor's memory along"


async def test_models_come_go_and_return(
    host: SimulatedHost, http: aiohttp.ClientSession, ports: list[int], one: Registration
) -> None:
    two = registration("two", port=ports[2], backend=BackendType.VLLM)
    await host.follow([one, two])
    assert host.backends.keys() == {"one", "two"}
    assert await answers(http, ports[2])

    await host.follow([two])
    assert host.backends.keys() == {"two"}
    assert await answers(http, ports[1]), "the others learn of it a little later"
    before = host.backends["two"]
    await host.follow([one, two])
    assert host.backends.keys() == {"one", "two"}
    assert host.backends["two"] is before
    assert await answers(http, ports[1])


async def test_another_model_on_the_port_of_one_that_leaves_waits_for_it(
    host: SimulatedHost, http: aiohttp.ClientSession, ports: list[int], one: Registration
) -> None:
    renamed = one.model_copy(update={"name": "renamed"})
    await host.follow([renamed])
    assert host.backends.keys() == {"renamed"}
    assert await answers(http, ports[1])


async def test_models_that_swap_their_ports_are_swapped_at_once(
    host: SimulatedHost, http: aiohttp.ClientSession, ports: list[int], one: Registration
) -> None:
    """While one lingers, as a model that leaves does, calls for its successor would get its answers."""
    two = registration("two", port=ports[2])
    await host.follow([one, two])
    began = time.monotonic()
    await host.follow([one.model_copy(update={"port": ports[2]}), two.model_copy(update={"port": ports[1]})])
    assert time.monotonic() - began < LINGERS_S
    assert {name: backend.port for name, backend in host.backends.items()} == {
        "one": ports[2],
        "two": ports[1],
    }
    assert [await answers(http, port) for port in ports[1:3]] == [True, True]


async def test_what_needs_another_server_and_a_port_that_is_taken_are_said(
    host: SimulatedHost, http: aiohttp.ClientSession, ports: list[int], one: Registration
) -> None:
    with log_lines() as lines:
        await host.follow(
            [
                one.model_copy(update={"slots": 9, "tokens_per_second": 77.0, "pin": True}),
                registration("late", port=ports[0]),
                registration("fine", port=ports[3]),
            ]
        )
    assert "simulated one: slots needs a restart of simulator" in lines
    (refused,) = [line for line in lines if line.startswith("simulated late is not served")]
    assert f"port {ports[0]}" in refused
    assert host.backends.keys() == {"one", "fine"}
    state = host.backends["one"].state
    assert (state.slots, state.tokens_per_second, state.registration.slots) == (2, 77.0, 2)
    assert await answers(http, ports[3])
