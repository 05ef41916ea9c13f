"""The keeper of leases while Redis is slow, deaf or away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from shared.leases import Leases
from shared.states import BackendType
from shared.store.grants import Grant
from shared.store.records import RenewOutcome
from tests.kit.api_fixture import end
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.store_fixture import MODEL, Store, open_store
from tests.kit.waiting import wait_until

LEASE_S = 2.0


@dataclass(eq=False)
class _Held:
    grant: Grant
    told: list[RenewOutcome]


async def _held(store: Store, job_id: str) -> _Held:
    await store.submit(job_id)
    attempt = await store.start(job_id, f"n-{job_id}")
    grant = Grant(
        job_id=job_id, attempt=attempt, tries=0, model=MODEL, backend=BackendType.VLLM, url="http://127.0.0.1:1",
        upstream_name=MODEL, api_key_env=None, gpu="", code="chosen", reason="", estimated_duration_ms=None,
        granted_ms=0,
    )  # fmt: skip
    return _Held(grant, [])


@asynccontextmanager
async def _keeper(store: Store, *, gives_up: bool = False) -> AsyncIterator[Leases[_Held]]:
    leases: Leases[_Held] = Leases(store.jobs, LEASE_S, gives_up=gives_up)
    running = asyncio.create_task(leases.run())
    try:
        yield leases
    finally:
        await end(running)


async def test_a_renewal_that_hangs_holds_up_no_other(store: Store) -> None:
    first, second = await _held(store, "j1"), await _held(store, "j2")
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as behind:
        # Without a limit of its own the call would wait for as long as the client does.
        behind.redis.connection_pool.connection_kwargs["socket_timeout"] = 600.0
        async with _keeper(behind) as leases:
            proxy.spoil(Fault.HOLD, name="EVALSHA")
            leases.keep(first, first.told.append, within_s=0.0)
            await asyncio.wait_for(proxy.held.wait(), 30)
            leases.keep(second, second.told.append, within_s=0.0)
            await wait_until(lambda: first.told and second.told, "both are told all the same")
            assert set(first.told + second.told) == {RenewOutcome.RENEWED}
        proxy.release()


@pytest.mark.parametrize("gives_up", [True, False])
async def test_who_cannot_renew_for_a_whole_lease_stops_if_it_has_to(store: Store, gives_up: bool) -> None:
    """A router stops its call, an api goes on with the answer of a client that waits for it."""
    held = await _held(store, "j1")
    async with (
        FaultProxy(store.url) as proxy,
        open_store(proxy.url, fail_fast=True) as deaf,
        _keeper(deaf, gives_up=gives_up) as leases,
    ):
        proxy.spoil(Fault.BLACKHOLE, name="EVALSHA", times=1_000)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        leases.keep(held, held.told.append, within_s=0.0)
        await wait_until(
            lambda: held.told or loop.time() > begun + 2 * LEASE_S,
            "two leases have passed",
        )
        assert held.told == ([RenewOutcome.STALE] if gives_up else [])
        assert leases.kept == (0 if gives_up else 1)
        if gives_up:
            assert loop.time() >= begun + LEASE_S


async def test_once_redis_is_back_it_is_renewed_again(store: Store) -> None:
    held = await _held(store, "j1")
    async with (
        FaultProxy(store.url) as proxy,
        open_store(proxy.url, fail_fast=True) as away,
        _keeper(away) as leases,
    ):
        proxy.spoil(Fault.CUT, name="EVALSHA", times=12)
        leases.keep(held, held.told.append, within_s=0.0)
        await wait_until(lambda: held.told, "it is renewed after all")
        assert held.told[0] is RenewOutcome.RENEWED
        assert proxy.spoiled


async def test_what_is_dropped_while_it_is_renewed_is_told_nothing(store: Store) -> None:
    held = await _held(store, "j1")
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as slow, _keeper(slow) as leases:
        proxy.spoil(Fault.HOLD, name="EVALSHA")
        leases.keep(held, held.told.append, within_s=0.0)
        await asyncio.wait_for(proxy.held.wait(), 30)
        leases.drop(held)
        other = await _held(store, "j2")
        leases.keep(other, other.told.append, within_s=0.0)
        proxy.release()
        await wait_until(lambda: other.told, "the next one is told")
        assert held.told == []
