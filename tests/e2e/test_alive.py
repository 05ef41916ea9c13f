"""The containers' health check, asked about real services: alive, gone, silent, somewhere else."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.up import alive
from shared.store.fleet import HEARTBEAT_TTL_S
from tests.kit.configs import free_ports, simulated_config
from tests.kit.redis_fixture import free_port
from tests.kit.stack import ROOT, Stack
from tests.kit.waiting import wait_until


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    """Nothing runs yet."""
    config = simulated_config(redis={"url": redis_url})
    async with Stack(tmp_path, config) as made:
        yield made


async def check(stack: Stack, service: str, **environ: str) -> tuple[int, str]:
    """Exit status and words of the command that Docker runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", alive.__name__, service,
        cwd=ROOT,
        env={**os.environ, "ORCH_CONFIG": str(stack.path), "ORCH_HOST_NAME": "host", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    words, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, words.decode().strip()


@pytest.mark.slow
async def test_every_service_is_alive_while_it_runs_and_not_after(stack: Stack) -> None:
    names = ("simulator", "monitor", "router", "api")
    processes = {name: stack.start(name) for name in names}
    await stack.ready()

    assert {name: await check(stack, name) for name in names} == {
        name: (0, f"{name} lives") for name in names
    }

    for name in reversed(names):
        assert await stack.stop(processes[name]) == 0
    for name in names:
        status, words = await check(stack, name)
        assert (status, len(words.splitlines())) == (1, 1)
        assert name in words


async def test_a_replica_of_another_container_does_not_vouch_for_this_one(stack: Stack) -> None:
    stack.start("router", environ={"ORCH_HOST_NAME": "1f0c"})
    await wait_until(stack.fleet.services, "the router is on the list")

    assert await check(stack, "router", ORCH_HOST_NAME="2e1d") == (
        1,
        "no router of 2e1d is on the list of services",
    )
    assert await check(stack, "router", ORCH_HOST_NAME="1f0c") == (0, "router lives")


@pytest.mark.parametrize(("silent_s", "status"), [(HEARTBEAT_TTL_S + 5, 1), (-60.0, 0)])
async def test_a_service_that_fell_silent_is_not_alive(stack: Stack, silent_s: float, status: int) -> None:
    """The living one has a heartbeat of the future: a slow machine must not take it for silent."""
    seconds, _ = await stack.redis.time()
    entry = {"service": "router", "host": "host", "boot": "b", "heartbeat_ms": (seconds - silent_s) * 1000}
    await stack.redis.hset(stack.keys.services, "router-host", json.dumps(entry))

    found, words = await check(stack, "router")

    assert found == status
    assert ("was last heard of" in words) == bool(status)


async def test_the_other_service_of_the_same_host_does_not_count(stack: Stack) -> None:
    await stack.fleet.heartbeat("router-host", "b", {"service": "router", "host": "host"})

    assert await check(stack, "monitor") == (1, "no monitor of host is on the list of services")


async def test_redis_that_does_not_answer_is_one_line(stack: Stack) -> None:
    status, words = await check(stack, "router", ORCH_REDIS__URL=f"redis://127.0.0.1:{free_port()}/0")

    assert status == 1
    assert words.startswith("Redis does not answer")
    assert len(words.splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("ORCH_REDIS__URL", "redis://127.0.0.1:nine/0", "redis.url"), ("ORCH_API__PORT", "many", "api.port")],
)
async def test_a_wrong_setting_is_named(stack: Stack, variable: str, value: str, said: str) -> None:
    status, words = await check(stack, "router", **{variable: value})

    assert status == 1
    assert said in words


async def test_a_server_that_answers_otherwise_is_not_the_api(stack: Stack) -> None:
    """The simulator's control port knows no /healthz."""
    (port,) = free_ports(1)
    stack.start("simulator", environ={"ORCH_SIMULATOR__PORT": str(port)})

    async def lives() -> bool:
        return (await check(stack, "simulator", ORCH_SIMULATOR__PORT=str(port)))[0] == 0

    await wait_until(lives, "the simulator lives", timeout_s=60.0)
    status, words = await check(stack, "api", ORCH_API__PORT=str(port))

    assert status == 1
    assert words.startswith("/healthz says 404")
