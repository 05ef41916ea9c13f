"""Redis killed and restarted under load: no accepted job is lost, the services recover by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from shared.store.server import EmbeddedRedis
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.journal import Journal
from tests.kit.stack import Stack, running_stack
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until

RECOVERY_S = 10.0
SLOWEST_ANSWER_S = 8.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(free_ports(1)[0], tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def stack(tmp_path: Path, server: EmbeddedRedis) -> AsyncIterator[Stack]:
    model = simulated_model("quick", free_ports(1)[0], tokens_per_second=200)
    config = simulated_config([model])
    async with running_stack(
        tmp_path, server.url, config, ("simulator", "monitor", "router", "api")
    ) as stack:
        yield stack


class Load:
    """Posts jobs one after another, whatever the api answers, and remembers what it promised."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.accepted: list[str] = []
        self.refused = 0
        self.slowest_s = 0.0

    async def is_refused(self) -> None:
        """Wait until the api has answered 503 once more."""
        before = self.refused
        await wait_until(lambda: self.refused > before, "the api answers 503")

    async def run(self) -> None:
        with Stopwatch(*self._stack.pids) as watch:
            while True:
                watch.restart()
                await self._post()
                self.slowest_s = max(self.slowest_s, watch.elapsed_s)
                await asyncio.sleep(0.02)  # the pace of the load, not a wait for anything

    async def _post(self) -> None:
        try:
            status, body = await self._stack.post({"prompt": "hi", "max_tokens": 10, "max_attempts": 9})
        except aiohttp.ClientError as error:
            raise AssertionError(f"the api broke off: {error}") from error
        if status == 202:
            self.accepted.append(body["job_id"])
        else:
            assert status == 503, (status, body)
            self.refused += 1


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_no_accepted_job_is_lost_when_redis_dies_three_times(
    stack: Stack, server: EmbeddedRedis
) -> None:
    load = Load(stack)
    posting = asyncio.create_task(load.run())
    for _ in range(3):
        await _some_finish(stack, load)
        server.kill()
        await load.is_refused()
        await asyncio.to_thread(server.start)
        with Stopwatch(*stack.pids) as restarted:
            await _some_finish(stack, load)
            assert restarted.elapsed_s < RECOVERY_S
    posting.cancel()

    async def idle() -> bool:
        return await stack.jobs.counts() == (0, 0)

    # Also the job whose POST was under way when the load was stopped.
    await wait_until(idle, "nothing waits and nothing runs", timeout_s=60)

    async def all_ended() -> bool:
        return set(Journal(await stack.events()).ended()) >= set(load.accepted)

    await wait_until(all_ended, f"all {len(load.accepted)} accepted jobs end", timeout_s=60)
    journal = Journal(await stack.events())
    assert journal.faults() == []
    assert {journal.ended()[job] for job in load.accepted} == {"job.succeeded"}
    assert await stack.in_flight("quick") == 0
    assert load.slowest_s < SLOWEST_ANSWER_S


async def _some_finish(stack: Stack, load: Load) -> None:
    """Jobs accepted from now on are run to their end."""
    known = len(load.accepted)
    await wait_until(lambda: len(load.accepted) >= known + 10, "the api accepts jobs")
    job = await stack.ended(load.accepted[known + 5])
    assert job["state"] == "succeeded"
