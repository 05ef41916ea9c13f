"""Routers killed and frozen under load: every accepted job still ends exactly once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.journal import Journal, most_in_flight
from tests.kit.stack import Stack
from tests.kit.waiting import wait_until

JOBS = 500
LEASE_S = 3.0
KILL_EVERY_S = 2.0
SLOTS = {"quick": 4, "steady": 2}


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    ports = free_ports(2)
    models = [
        simulated_model("quick", ports[0], slots=SLOTS["quick"], tokens_per_second=200),
        simulated_model("steady", ports[1], slots=SLOTS["steady"], tokens_per_second=100, vram_gb=6.0),
    ]
    config = simulated_config(models, router={"lease_s": LEASE_S, "retry_base_s": 0.05})
    async with Stack(tmp_path, {**config, "redis": {"url": redis_url}}) as stack:
        for service in ("simulator", "monitor", "api"):
            stack.start(service)
        yield stack


class Routers:
    """Three router processes, one of which is killed and replaced at a time."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._processes = [stack.start("router") for _ in range(3)]
        self.kills = 0

    async def kill_in_turn(self) -> None:
        """SIGKILL one every ``KILL_EVERY_S`` seconds, and start another in its place."""
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            victim = self._processes.pop(0)
            victim.kill()
            victim.wait()
            self.kills += 1
            self._processes.append(self._stack.start("router"))

    def freeze_one(self) -> subprocess.Popen[bytes]:
        """SIGSTOP the router that would be killed last; the killer no longer knows it."""
        frozen = self._processes.pop()
        frozen.send_signal(signal.SIGSTOP)
        return frozen


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_every_accepted_job_ends_exactly_once_while_routers_are_killed_and_frozen(stack: Stack) -> None:
    """500 jobs, 3 routers, lease 3 s, a SIGKILL every 2 s, a router stopped past its lease and woken."""
    routers = Routers(stack)
    await stack.ready()
    killer = asyncio.create_task(routers.kill_in_turn())
    accepted = [
        await stack.submit(prompt=f"job {number}", agent_type="Chat", max_tokens=20, max_attempts=20)
        for number in range(JOBS)
    ]

    frozen = await _freeze_while_it_works(stack, routers)
    await _sweeps_its_jobs(stack)
    frozen.send_signal(signal.SIGCONT)
    await _all_ended(stack, accepted)
    killer.cancel()

    events = await stack.events()
    journal = Journal(events)
    assert journal.faults() == []
    ends = journal.ended()
    assert set(ends) >= set(accepted)
    assert Counter(ends.values()) == {"job.succeeded": JOBS}
    for model, peak in most_in_flight(events).items():
        assert peak <= SLOTS[model]
    assert [await stack.in_flight(model) for model in SLOTS] == [0, 0]
    assert await stack.jobs.counts() == (0, 0)
    assert routers.kills >= 3
    assert any(entry.fields["type"] == "job.requeued" for entry in events), "no lease was ever lost"


async def _freeze_while_it_works(stack: Stack, routers: Routers) -> subprocess.Popen[bytes]:
    async def some_run() -> bool:
        return (await stack.jobs.counts())[1] >= 3

    await wait_until(some_run, "routers run jobs")
    return routers.freeze_one()


async def _sweeps_its_jobs(stack: Stack) -> None:
    """A lease and its grace pass: whatever the frozen router held has been taken back."""
    seen = len(await stack.events())

    async def lost() -> bool:
        later = (await stack.events())[seen:]
        return any(entry.fields["type"] == "job.requeued" for entry in later)

    await wait_until(lost, "a lease of the frozen router is swept")


async def _all_ended(stack: Stack, accepted: list[str]) -> None:
    async def over() -> bool:
        return set(Journal(await stack.events()).ended()) >= set(accepted)

    await wait_until(over, f"all {len(accepted)} jobs end", timeout_s=120)
