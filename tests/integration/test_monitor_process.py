"""The monitor as a process: how it starts, what it says when it can't run, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.store.server import EmbeddedRedis
from tests.kit.monitor import GPU, GpuEndpoint, gpu
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.stack import Stack
from tests.kit.stopwatch import Stopwatch
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

_STOP_S = 2.0


@pytest.fixture
async def gpus() -> AsyncIterator[GpuEndpoint]:
    async with GpuEndpoint() as endpoint:
        yield endpoint


def stack_on(directory: Path, redis_url: str, gpu_port: int, **sections: Any) -> Stack:
    return Stack(
        directory,
        {
            "redis": {"url": redis_url},
            "gpu": {"source": "simulated", "interval_s": 0.1},
            "simulator": {"port": gpu_port},
            "log": {"dir": str(directory / "logs"), "level": "DEBUG"},
            **sections,
        },
    )


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str, gpus: GpuEndpoint) -> AsyncIterator[Stack]:
    async with stack_on(tmp_path, redis_url, gpus.port) as opened:
        yield opened


async def first_sample(stack: Stack) -> None:
    async def sampled() -> bool:
        return bool(await stack.redis.exists(stack.keys.of("gpu", GPU)))

    await wait_until(sampled, "a first sample", timeout_s=60)


async def said(stack: Stack, words: str) -> None:
    await wait_until(lambda: words in stack.output("monitor"), f"the monitor says {words!r}", timeout_s=60)


async def ended(stack: Stack, process: subprocess.Popen[bytes]) -> tuple[int, list[str]]:
    """Exit status and what was printed, once it has ended by itself."""
    await wait_until(lambda: process.poll() is not None, "the monitor ends", timeout_s=60)
    return process.returncode, stack.output("monitor").splitlines()


async def stop_in_time(process: subprocess.Popen[bytes]) -> int:
    with Stopwatch(process.pid) as told:
        process.send_signal(signal.SIGTERM)
        await wait_until(lambda: process.poll() is not None, "the monitor stops")
        assert told.elapsed_s < _STOP_S
    return process.returncode


async def test_it_gives_way_to_whoever_serves(stack: Stack) -> None:
    process = stack.start("monitor")
    await first_sample(stack)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)


async def test_sigterm_ends_it_in_order_and_takes_it_off_the_list(stack: Stack, store: Store) -> None:
    process = stack.start("monitor")
    await first_sample(stack)
    assert [record.instance for record in await store.fleet.services()] == ["monitor-host"]
    assert await stop_in_time(process) == 0
    assert await store.fleet.services() == ()
    assert "ERROR" not in stack.output("monitor")


async def test_a_killed_monitor_leaves_a_sample_that_expires_and_a_level_that_holds(
    stack: Stack, gpus: GpuEndpoint, store: Store
) -> None:
    gpus.cards = [gpu(use=0.9)]
    process = stack.start("monitor")
    await first_sample(stack)
    process.kill()
    process.wait()
    sample_ttl: Any = await store.redis.pttl(store.keys.of("gpu", GPU))
    level_ttl: Any = await store.redis.pttl(store.keys.of("gpu_level", GPU))
    assert 0 < sample_ttl <= 5000
    assert level_ttl == -1
    assert (await store.fleet.level(GPU))["pressure"] == "critical"

    # For some seconds it counts as alive; here until its successor has come, however slow the machine is.
    name = "monitor-host"
    entry = json.loads(str(await store.redis.hget(store.keys.services, name)))
    entry["heartbeat_ms"] += 600_000
    await store.redis.hset(store.keys.services, name, json.dumps(entry))
    successor = stack.start("monitor")
    await said(stack, "another monitor of this host")
    gpus.cards = [gpu(use=0.83)]
    seen = gpus.reads
    await wait_until(lambda: gpus.reads >= seen + 5, "its successor reads", timeout_s=60)
    assert (await store.fleet.level(GPU))["pressure"] == "critical"
    assert await stop_in_time(successor) == 0


async def test_redis_away_at_the_start_is_waited_out(tmp_path: Path, gpus: GpuEndpoint) -> None:
    server = EmbeddedRedis(free_port(), tmp_path / "redis")
    async with stack_on(tmp_path, server.url, gpus.port) as stack:
        process = stack.start("monitor")
        await said(stack, "waiting for Redis")
        with server:
            await first_sample(stack)
        assert process.poll() is None


async def test_sigterm_ends_it_in_time_while_redis_is_away(tmp_path: Path, gpus: GpuEndpoint) -> None:
    server = EmbeddedRedis(free_port(), tmp_path / "redis")
    async with stack_on(tmp_path, server.url, gpus.port) as stack:
        never_up = stack.start("monitor")
        await said(stack, "waiting for Redis")
        assert await stop_in_time(never_up) == 0
        with server:
            process = stack.start("monitor")
            await first_sample(stack)
        await said(stack, "Redis is away")
        assert await stop_in_time(process) == 0


async def test_sigterm_ends_it_in_time_while_redis_and_the_gpu_source_hang(
    tmp_path: Path, gpus: GpuEndpoint
) -> None:
    with EmbeddedRedis(free_port(), tmp_path / "redis") as server:
        async with stack_on(tmp_path, server.url, gpus.port) as stack:
            process = stack.start("monitor")
            await first_sample(stack)
            gpus.answers.clear()
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            await said(stack, "no GPU readings")
            assert await stop_in_time(process) == 0
            os.kill(server.pid, signal.SIGCONT)
            gpus.answers.set()


async def test_a_wrong_setting_is_one_line_and_status_2(tmp_path: Path, redis_url: str) -> None:
    async with stack_on(tmp_path, redis_url, 8090) as stack:
        stack.path.write_text("gpu: {interval: 1}\n", encoding="utf-8")
        status, lines = await ended(stack, stack.start("monitor"))
    assert status == 2
    assert len(lines) == 1
    assert "gpu.interval" in lines[0]


async def test_an_evicting_redis_is_one_line_and_status_1(tmp_path: Path, gpus: GpuEndpoint) -> None:
    with EmbeddedRedis(free_port(), tmp_path / "redis") as server:
        redis_reply(server.url, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        async with stack_on(tmp_path, server.url, gpus.port) as stack:
            status, lines = await ended(stack, stack.start("monitor"))
    assert status == 1
    assert len(lines) == 1
    assert "noeviction" in lines[0]


async def test_an_instance_name_that_is_taken_is_one_line_and_status_1(stack: Stack, store: Store) -> None:
    await store.fleet.heartbeat("mine", "another boot", {"service": "monitor"})
    process = stack.start("monitor", instance="mine")
    await wait_until(lambda: process.poll() is not None, "the monitor ends", timeout_s=60)
    lines = stack.output("mine").splitlines()
    assert process.returncode == 1
    assert len(lines) == 1
    assert "ORCH_INSTANCE" in lines[0]


async def test_a_loop_that_crashes_ends_the_process_with_its_reason_in_the_last_line(
    stack: Stack, store: Store
) -> None:
    """A stream's key that holds a string is an error that waiting doesn't mend."""
    await store.redis.set(store.keys.gpu_samples, "no stream")
    try:
        status, lines = await ended(stack, stack.start("monitor"))
    finally:
        await store.redis.delete(store.keys.gpu_samples)
    assert status == 1
    assert "ERROR" in lines[-1]
    assert "WRONGTYPE" in lines[-1]


async def test_its_log_file_answers_the_greps_of_the_specification(stack: Stack, gpus: GpuEndpoint) -> None:
    gpus.cards = [gpu(use=0.9, temperature_c=70.0)]
    stack.start("monitor")
    await first_sample(stack)
    log = Path(stack.settings.log.dir) / "monitor.log"
    found = [line for line in log.read_text(encoding="utf-8").splitlines() if "GPU host/0" in line]
    assert len(found) == 1
    assert all(word in found[0] for word in ("GPU", "memory", "pressure", "thermal", "critical", "warning"))
