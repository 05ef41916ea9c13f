"""Leases that run out while Redis or all routers stand still: nobody could have renewed them."""

from __future__ import annotations

from shared.store.records import RenewOutcome
from tests.kit.store_fixture import LEASE_MS, Store
from tests.kit.waiting import wait_until

GRACE_MS = 1000


async def _ran_out(store: Store, *, before_ms: int, looked_before_ms: int) -> None:
    """The lease of j1 ran out so long ago, and the routers last looked so long ago."""
    now_ms = await store.now_ms()
    await store.redis.zadd(store.keys.static("leases"), {"j1": now_ms - before_ms})
    await store.redis.hset(store.keys.static("swept"), "last_ms", str(now_ms - looked_before_ms))


async def test_a_lease_that_ran_out_in_a_standstill_can_still_be_renewed(store: Store) -> None:
    await store.start()
    await _ran_out(store, before_ms=5000, looked_before_ms=6000)
    assert await store.jobs.sweep(grace_ms=GRACE_MS) == []
    assert await store.jobs.renew("j1", 1, LEASE_MS) is RenewOutcome.RENEWED
    assert await store.state() == "running"


async def test_a_lease_that_nobody_renews_after_a_standstill_is_swept_a_grace_later(store: Store) -> None:
    await store.start()
    await _ran_out(store, before_ms=5000, looked_before_ms=6000)

    async def swept() -> bool:
        return await store.jobs.sweep(grace_ms=GRACE_MS) == ["j1"]

    assert not await swept()
    await wait_until(swept, "the lease is swept")


async def test_a_lease_that_had_run_out_before_a_standstill_is_swept_at_once(store: Store) -> None:
    """Else routers that always look late would never sweep anything."""
    await store.start()
    await _ran_out(store, before_ms=5000, looked_before_ms=4000)
    assert await store.jobs.sweep(grace_ms=GRACE_MS) == ["j1"]
