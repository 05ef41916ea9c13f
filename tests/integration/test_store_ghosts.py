"""Jobs whose hash somebody deleted by hand: their queue goes on without them, and nothing spins."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.jobs import parse_job
from shared.states import JobState
from shared.store.records import ClaimOutcome
from shared.submission import new_job
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.stack import Stack
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

_TARGET = "auto:Chat"


async def _order(store: Store) -> list[str]:
    """The jobs of the queue in the order in which the scheduler sees them."""
    view = await store.fleet.view(heads=10)
    return [head.job_id for target in view.targets for head in target.heads]


@pytest.mark.parametrize("ghost", ["a", "b", "c"])
async def test_a_queue_goes_on_without_a_job_whose_hash_is_gone(store: Store, ghost: str) -> None:
    """``a`` contends, ``b`` waits behind it in its caller's line, ``c`` is another caller's."""
    await store.submit("a", caller="ann")
    await store.submit("b", caller="ann")
    await store.submit("c", caller="cleo")
    await store.redis.delete(store.keys.job(ghost))
    assert (await store.claim(ghost)).outcome is ClaimOutcome.GONE
    assert await store.jobs.mend_queue(_TARGET) == [ghost]
    await store.check()
    left = [name for name in ("a", "c", "b") if name != ghost]
    assert sorted(await _order(store)) == sorted(left)
    assert await store.jobs.counts() == (2, 0)
    claims = [(await store.claim(name, name)).outcome for name in await _order(store)]
    assert claims == [ClaimOutcome.CLAIMED] * 2


async def test_the_turn_of_a_lost_job_goes_to_the_next_of_its_caller(store: Store) -> None:
    for name, caller in (("a", "ann"), ("b", "ann"), ("c", "cleo")):
        await store.submit(name, caller=caller)
    await store.redis.delete(store.keys.job("a"))
    await store.jobs.mend_queue(_TARGET)
    assert await _order(store) == ["b", "c"]


async def test_a_queue_of_lost_jobs_alone_is_gone_with_its_hold(store: Store) -> None:
    target = "odd*[name]?"
    await store.submit("a", target=target, caller="ann")
    await store.submit("b", target=target)
    await store.submit("kept", target="odd-name!")
    await store.jobs.hold("a", "model_busy", "no slot", ())
    await store.redis.delete(store.keys.job("a"), store.keys.job("b"))
    assert sorted(await store.jobs.mend_queue(target)) == ["a", "b"]
    assert await _order(store) == ["kept"]


async def test_mending_a_sound_queue_changes_nothing(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.submit(name, caller="ann")
    await store.jobs.hold("a", "model_busy", "no slot", ())
    before = await store.dump()
    assert await store.jobs.mend_queue(_TARGET) == []
    assert await store.dump() == before


@pytest.mark.parametrize("step", ["promote", "expire"])
async def test_a_lost_job_that_was_delayed_leaves_nothing_behind(store: Store, step: str) -> None:
    await store.start()
    await store.fail(delay_ms=60_000)
    if step == "promote":
        await store.make_due()
    else:
        await store.pass_deadline()
    await store.redis.delete(store.keys.job("j1"))
    await (store.jobs.promote() if step == "promote" else store.jobs.expire(overstay_ms=0))
    left = await store.dump()
    assert [name for name, members in left.zsets.items() if "j1" in members] == []
    assert store.keys.request("j1") not in left.strings


async def test_a_lost_job_that_ran_counts_no_longer_as_waiting_once_its_lease_is_over(store: Store) -> None:
    await store.start()
    await store.lapse_lease()
    await store.redis.delete(store.keys.job("j1"))
    await store.jobs.sweep(grace_ms=0)
    assert await store.jobs.counts() == (0, 0)
    await store.redis.flushall()  # nobody knows any more which slot it held


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    config = simulated_config([simulated_model("alpha", free_ports(1)[0])])
    async with Stack(tmp_path, {**config, "redis": {"url": redis_url}}) as stack:
        for service in ("simulator", "monitor", "api"):
            stack.start(service)
        await wait_until(stack.fleet.registrations, "the api registered the model", timeout_s=30)
        yield stack


async def _submit(stack: Stack, count: int) -> list[str]:
    names = [f"j{number}" for number in range(count)]
    request = parse_job({"prompt": "hi", "model": "alpha", "max_tokens": 4})
    for name in names:
        await stack.jobs.submit(new_job(request, stack.settings, name), bound=100)
    return names


async def _succeeded(stack: Stack, job: str) -> bool:
    record = await stack.jobs.get(job)
    return record is not None and record.state is JobState.SUCCEEDED


async def test_a_router_serves_the_queue_behind_a_lost_job(stack: Stack) -> None:
    jobs = await _submit(stack, 4)
    await stack.redis.delete(*(stack.keys.job(job) for job in jobs[:3]))
    stack.start("router")
    await wait_until(lambda: _succeeded(stack, jobs[3]), "the last one succeeded", timeout_s=60)
    assert "held jobs that exist no longer" in stack.output("router")


async def test_a_router_that_can_claim_nothing_of_what_it_sees_does_not_spin(stack: Stack) -> None:
    """More jobs than one look shows, all of which a claim refuses: their hashes name another queue."""
    jobs = await _submit(stack, 12)
    for job in jobs:
        await stack.redis.hset(stack.keys.job(job), "target", "elsewhere")
    stack.start("router")
    await wait_until(lambda: _is_up(stack), "the router is up")
    before, since = await _scripts_run(stack), time.monotonic()
    await wait_until(lambda: time.monotonic() - since > 2.0, "two seconds go by")
    assert await _scripts_run(stack) - before < 200


async def _is_up(stack: Stack) -> bool:
    return any(found.service == "router" for found in await stack.fleet.services())


async def _scripts_run(stack: Stack) -> int:
    stats: Any = await stack.redis.info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])
