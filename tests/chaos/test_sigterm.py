"""SIGTERM to each service under load: in-flight work ends or is handed over, and the process in 10 s."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared.store.server import EmbeddedRedis
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.journal import Journal, most_in_flight
from tests.kit.redis_fixture import free_port
from tests.kit.simulation import Simulation
from tests.kit.stack import Stack, running_stack
from tests.kit.stopwatch import Stopwatch
from tests.kit.store_dump import dump, violations
from tests.kit.up import Up, running
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

STOP_S = 10.0
SLOTS = {"quick": 2, "long": 2}
DRAIN_S = 2.0
"""Instead of 8 s, for all but two of the tests."""
LONG_TOKENS = 100
"""5 s of the long model: more than a router drains."""


def _config(**sections: Any) -> dict[str, Any]:
    ports = free_ports(2)
    models = [
        simulated_model("quick", ports[0], slots=SLOTS["quick"], tokens_per_second=40),
        simulated_model("long", ports[1], slots=SLOTS["long"], tokens_per_second=20),
    ]
    return simulated_config(models, **sections)


@asynccontextmanager
async def _stack(directory: Path, redis_url: str, **sections: Any) -> AsyncIterator[Stack]:
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(directory, redis_url, _config(**sections), services) as stack:
        yield stack


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    async with _stack(tmp_path, redis_url, router={"drain_s": DRAIN_S}) as stack:
        yield stack


async def test_a_router_ends_its_jobs_and_hands_over_to_another_what_takes_longer(stack: Stack) -> None:
    jobs = await _loaded(stack)
    stack.start("router", instance="other")
    assert await _stopped(stack.process("router")) == 0

    await _sound(stack, jobs)
    handed_over = await _handed_over(stack)
    assert handed_over == {"long"}
    routers = {entry.fields["router"] for entry in await _of(stack, "job.succeeded")}
    assert "other" in routers
    assert len(routers) == 2, "the router that stopped ended none of its jobs itself"


async def test_the_only_routers_jobs_wait_for_the_next_one(stack: Stack) -> None:
    jobs = await _loaded(stack)
    assert await _stopped(stack.process("router")) == 0

    # Nothing is left behind under a lease that would have to run out.
    waiting, runs = await stack.jobs.counts()
    assert runs == 0
    assert waiting > 0
    later = await stack.submit(prompt="hi", model="quick", max_tokens=4)
    stack.start("router", instance="next")
    await _sound(stack, [*jobs, later])
    assert await _handed_over(stack) == {"long"}


async def test_all_end_in_time_while_redis_hangs_and_their_jobs_end_once(tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path / "redis") as redis:
        async with _stack(tmp_path, redis.url, router={"lease_s": 3.0}) as stack:
            jobs = await _loaded(stack)
            assert redis.pid is not None
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                stops = [_stopped(stack.process(name)) for name in ("router", "api", "monitor")]
                assert await asyncio.gather(*stops) == [0, 0, 0]
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            for service in ("router", "monitor"):
                stack.start(service, instance=f"next-{service}")
            await _sound(stack, jobs)


async def test_a_monitor_leaves_its_levels_and_the_gate_stays_shut_until_the_next_one(stack: Stack) -> None:
    simulation = Simulation(stack)
    await simulation.gpu(utilization=0.96)
    await simulation.level(full="1")
    jobs = [await stack.submit(prompt="hi", model="quick", max_tokens=4) for _ in range(20)]
    await simulation.held(jobs[0])
    assert await _stopped(stack.process("monitor")) == 0

    # What it last sampled expires; what level the card had does not.
    async def expired() -> bool:
        return not await stack.redis.exists(stack.keys.of("gpu", "host/0"))

    await wait_until(expired, "the last sample expires")
    jobs.append(await stack.submit(prompt="hi", model="quick", max_tokens=4))
    assert (await stack.fleet.level("host/0"))["full"] == "1"
    successor = stack.start("monitor", instance="next")
    await wait_until(lambda: "as stored" in stack.output("next"), "the next monitor has the level")
    assert await _of(stack, "job.started") == []

    await simulation.gpu(utilization=0.30)
    await _sound(stack, jobs)
    assert await _stopped(successor) == 0


async def test_a_monitor_that_is_followed_at_once_stops_no_job(stack: Stack) -> None:
    jobs = await _loaded(stack)
    stopping = asyncio.create_task(_stopped(stack.process("monitor")))
    stack.start("monitor", instance="next")
    assert await stopping == 0

    await _sound(stack, jobs)
    assert await _handed_over(stack) == set()


async def test_an_api_answers_all_who_wait_at_it_and_loses_no_job_that_it_accepted(stack: Stack) -> None:
    jobs = await _loaded(stack)
    waits = [asyncio.create_task(_waited(stack, job)) for job in jobs if job in await _long(stack)]
    follows = [asyncio.create_task(_followed(stack, job)) for job in jobs]
    accepted: list[str] = []
    submitting = [asyncio.create_task(_submitting(stack, accepted)) for _ in range(4)]
    await wait_until(lambda: len(accepted) >= 20, "jobs are handed in")
    assert await _stopped(stack.process("api")) == 0

    assert [await one for one in waits] == [200] * len(waits)
    assert all("event:" in one and one.endswith("\n\n") for one in await asyncio.gather(*follows))
    await asyncio.gather(*submitting)
    stack.start("api", instance="next")
    await stack.ready()
    await _sound(stack, [*jobs, *accepted])


async def test_make_up_ends_in_time_under_load_and_its_next_run_does_what_is_left(tmp_path: Path) -> None:
    control, *ports = free_ports(3)
    models = [
        {"name": name, "port": port, "simulated": True, "slots": SLOTS[name], "agent_types": ["Chat"]}
        for name, port in zip(SLOTS, ports, strict=True)
    ]
    models[0]["tokens_per_second"], models[1]["tokens_per_second"] = 40, 20
    settings = {
        "ORCH_MODELS": json.dumps(models),
        "ORCH_SIMULATOR__PORT": str(control),
        "ORCH_SIMULATOR__LOAD_S": "0",
    }
    up = Up(tmp_path, ["-m", "services.up"], settings)
    try:
        await up.ready()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{up.api_port}") as http:
            # 10 s of the long model: more than the router drains by default.
            jobs = [await _post(http, model, 2 * tokens) for model, tokens in _LOAD]
            await wait_until(lambda: _all_run(http), "jobs run on every slot")
            children = up.children()
            assert await _stopped(up.process) == 0
            assert running(children) == []
            up = Up(tmp_path, ["-m", "services.up"], settings)
            await up.ready()
            for job in jobs:
                assert await _ended(http, job) == "succeeded"
    finally:
        if up.process.poll() is None:
            up.process.terminate()
            up.process.wait(20)
    assert "Traceback" not in "".join(path.read_text() for path in (tmp_path / "data/logs").glob("*.out"))


_LOAD = [("quick", 20)] * 30 + [("long", LONG_TOKENS)] * 4


async def _loaded(stack: Stack) -> list[str]:
    """More jobs than there are slots, all slots of which run."""
    jobs = [await stack.submit(prompt="hi", model=model, max_tokens=tokens) for model, tokens in _LOAD]

    async def busy() -> bool:
        return [await stack.in_flight(model) for model in SLOTS] == list(SLOTS.values())

    await wait_until(busy, "every slot is taken")
    return jobs


async def _stopped(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM; the exit status, which must come in time."""
    with Stopwatch(process.pid) as told:
        process.send_signal(signal.SIGTERM)
        await wait_until(lambda: process.poll() is not None, "the process ends", timeout_s=60)
        assert told.elapsed_s < STOP_S
    return int(process.returncode)


async def _sound(stack: Stack, jobs: Iterable[str]) -> None:
    """All of these have succeeded, once each, and nothing is left taken."""

    async def over() -> bool:
        return set(Journal(await stack.events()).ended()) >= set(jobs)

    await wait_until(over, "all jobs end", timeout_s=90)
    events = await stack.events()
    journal = Journal(events)
    assert journal.faults() == []
    ends = journal.ended()
    assert {ends[job] for job in jobs} == {"job.succeeded"}
    assert all(peak <= SLOTS[model] for model, peak in most_in_flight(events).items())
    assert [await stack.in_flight(model) for model in SLOTS] == [0, 0]
    assert await stack.jobs.counts() == (0, 0)
    assert violations(await dump(stack.redis, stack.keys), stack.keys) == []


async def _of(stack: Stack, kind: str) -> list[Any]:
    return [entry for entry in await stack.events() if entry.fields["type"] == kind]


async def _handed_over(stack: Stack) -> set[str]:
    """The models of the attempts that were given back, which must have cost no try."""
    events = await _of(stack, "job.requeued")
    assert all(entry.fields["charged"] == "0" for entry in events)
    return {entry.fields["model"] for entry in events}


async def _long(stack: Stack) -> set[str]:
    records = await stack.jobs.list_newest(state=None, limit=100)
    return {record.job_id for record in records if record.fields["model"] == "long"}


async def _waited(stack: Stack, job: str) -> int:
    """The status that somebody who waits for a job's end gets."""
    async with stack.http.get(f"{stack.api}/v1/jobs/{job}?wait=120") as answer:
        assert (await answer.json())["job_id"] == job
        return answer.status


async def _followed(stack: Stack, job: str) -> str:
    """All that somebody who follows a job's events gets, up to a clean end."""
    async with stack.http.get(f"{stack.api}/v1/jobs/{job}/events") as answer:
        return await answer.text()


async def _submitting(stack: Stack, accepted: list[str]) -> None:
    """Hand in jobs until the api is gone; what breaks off may have been accepted or not."""
    with suppress(aiohttp.ClientError):
        while True:
            status, body = await stack.post({"prompt": "hi", "model": "quick", "max_tokens": 2})
            if status != 202:
                return
            accepted.append(body["job_id"])


async def _post(http: aiohttp.ClientSession, model: str, tokens: int) -> str:
    job = {"prompt": "hi", "model": model, "max_tokens": tokens}
    async with http.post("/v1/jobs", json=job) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["job_id"])


async def _all_run(http: aiohttp.ClientSession) -> bool:
    async with http.get("/v1/jobs?state=running") as answer:
        return len((await answer.json())["jobs"]) == sum(SLOTS.values())


async def _ended(http: aiohttp.ClientSession, job: str) -> str:
    async with http.get(f"/v1/jobs/{job}?wait=90") as answer:
        return str((await answer.json())["state"])
