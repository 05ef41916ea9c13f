"""No job waits for the routers' fallback poll: whatever frees or brings something wakes them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.stack import Stack
from tests.kit.waiting import wait_until

_POLL_S = 60
_IN_TIME_S = 45
"""Far more than the work takes, and less than a poll."""


_ONE_EACH = {"max_in_flight": 1}


@pytest.mark.parametrize(
    ("routers", "router", "slots", "clients"),
    [(1, _ONE_EACH, 8, 1), (1, _ONE_EACH, 8, 4), (1, {}, 1, 4), (2, _ONE_EACH, 8, 4), (2, {}, 1, 4)],
)
async def test_none_waits_for_the_poll(
    tmp_path: Path, redis_url: str, routers: int, router: Mapping[str, Any], slots: int, clients: int
) -> None:
    model = simulated_model("quick", free_ports(1)[0], slots=slots, tokens_per_second=10_000)
    config = simulated_config([model], gpu={"interval_s": _POLL_S}, router={"poll_s": _POLL_S, **router})
    config["redis"] = {"url": redis_url}
    async with Stack(tmp_path, config) as stack:
        # The monitor looks once a minute here: what it does not find the first time nobody can use.
        stack.start("simulator")
        await wait_until(lambda: _answers(model["port"]), "the model answers")
        await wait_until(lambda: _answers(config["simulator"]["port"]), "the card answers")
        await stack.start_all(("monitor", "router", "api"))
        for number in range(1, routers):
            stack.start("router", instance=f"router-{number}")
        try:
            async with asyncio.timeout(_IN_TIME_S):
                await asyncio.gather(*(_jobs(stack, 20) for _ in range(clients)), _chats(stack, 20))
        except TimeoutError:
            pytest.fail(await _standing(stack))


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


async def _standing(stack: Stack) -> str:
    """How it stands when time is up: a machine that is only slow has ended something a moment ago."""
    said = [f"now {await stack.redis.time()}"]
    said += [
        f"{name} {await stack.redis.zrange(stack.keys.static(name), 0, -1, withscores=True)}"
        for name in ("live", "leases", "delayed")
    ]
    for name in ("events", "wakes", "requests", "decisions"):
        latest = await stack.redis.xrevrange(stack.keys.static(name), count=6)
        said.append(f"{name} ({await stack.redis.xlen(stack.keys.static(name))}) {latest}")
    said += [f"{name}: {stack.output(name)[-1500:]}" for name in ("router", "api")]
    return "\n".join(said)


async def _jobs(stack: Stack, count: int) -> None:
    """One job after the other, each as soon as the end of the last one is known."""
    for _ in range(count):
        job = await stack.ended(await stack.submit(model="quick", prompt="hi", max_tokens=1))
        assert job["state"] == "succeeded"


async def _chats(stack: Stack, count: int) -> None:
    body = {"model": "quick", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for _ in range(count):
        async with stack.http.post(stack.api + "/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
            await answer.read()
