"""Many routers at once, some of which crash or stall: every job ends once, and no limit is ever exceeded."""

from __future__ import annotations

import asyncio
import random

from shared.store.records import ClaimOutcome, FailKind, GpuClaim
from tests.kit.journal import Journal, most_in_flight
from tests.kit.store_fixture import GPU, MODEL, Store, open_store

JOBS = 80
ROUTERS = 6
LIMIT = 4
CANCELLED = 5


async def _route(url: str, name: str) -> None:
    """Take heads and end them in one way or another until nothing is left."""
    chance = random.Random(name)
    async with open_store(url) as store:
        while sum(await store.jobs.counts()) > 0:
            heads = [head for one in (await store.fleet.view(heads=3)).targets for head in one.heads]
            if heads:
                await _attempt(store, chance.choice(heads).job_id, name, chance)
            await store.jobs.sweep(grace_ms=0, limit=2)


async def _attempt(store: Store, job_id: str, name: str, chance: random.Random) -> None:
    nonce = f"{name}-{chance.random()}"
    gpus = (GpuClaim(GPU, LIMIT, 0),)
    claimed = await store.claim(job_id, nonce, router=name, limit=LIMIT, gpus=gpus)
    if claimed.outcome is not ClaimOutcome.CLAIMED:
        return
    if chance.random() < 0.2:  # its reply was lost and it is sent again
        again = await store.claim(job_id, nonce, router=name, limit=LIMIT, gpus=gpus)
        assert again.attempt in (claimed.attempt, 0)
    match chance.randrange(6):
        case 0:  # crashes
            await store.lapse_lease(job_id)
        case 1:  # stalls for longer than its lease, and comes back
            await store.lapse_lease(job_id)
            await store.jobs.sweep(grace_ms=0)
            assert await store.finish(job_id, claimed.attempt) == "STALE"
        case 2:
            await store.fail(job_id, claimed.attempt, charge=True)
        case 3:
            await store.fail(job_id, claimed.attempt, kind=FailKind.RELEASED)
        case _:
            assert await store.finish(job_id, claimed.attempt) == "FINISHED"


async def test_a_crowd_of_unreliable_routers_ends_every_job_once_within_every_limit(store: Store) -> None:
    """H9: fencing by attempt; what is recorded is recorded by its owner, or not at all."""
    for number in range(JOBS):
        await store.submit(f"j{number}", fields={"max_attempts": "1000"}, caller=f"caller-{number % 3}")
    routers = [asyncio.create_task(_route(store.url, f"router-{number}")) for number in range(ROUTERS)]
    for number in range(CANCELLED):
        await store.jobs.cancel(f"j{JOBS - 1 - number}", "not needed")
    await asyncio.gather(*routers)

    events = await store.events()
    ends = Journal(events).ended()
    assert len(ends) == JOBS
    assert set(ends.values()) <= {"job.succeeded", "job.cancelled"}
    assert 1 < most_in_flight(events)[MODEL] <= LIMIT
    assert sum(1 for event in events if event.fields["type"] == "job.requeued") > 10
