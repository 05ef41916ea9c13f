"""Jobs attached to the api that holds their client: granted to it, told to it, and gone with it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shared.states import BackendType, JobState
from shared.store.grants import CancelAsked, Ended, Grant, Grants, Told
from shared.store.records import ClaimOutcome, FailKind, Failure, RenewOutcome
from tests.kit.store_fixture import GPU, HOLDER, LEASE_MS, MODEL, Store
from tests.kit.waiting import wait_until


def _grants(store: Store) -> Grants:
    return Grants(store.reader, store.keys, HOLDER)


async def _told(store: Store) -> Sequence[Told]:
    """Everything that the api was told from the start."""
    return await _grants(store).read()


async def test_a_claim_grants_the_job_to_its_api_once_with_what_it_needs_to_call_the_backend(
    store: Store,
) -> None:
    await store.attach()
    grants = _grants(store)
    for _ in range(2):
        assert (await store.claim()).outcome is ClaimOutcome.CLAIMED
    (grant,) = await grants.read()
    assert isinstance(grant, Grant)
    assert (grant.job_id, grant.attempt, grant.tries) == ("j1", 1, 0)
    assert (grant.model, grant.backend, grant.url) == (MODEL, BackendType.LLAMA_CPP, "http://127.0.0.1:1")
    assert (grant.upstream_name, grant.api_key_env, grant.gpu) == (MODEL, None, GPU)
    assert (grant.code, grant.reason, grant.estimated_duration_ms) == ("best", "it fits", 250.0)
    assert 0 <= await store.now_ms() - grant.granted_ms < 60_000
    await store.jobs.fail("j1", 1, Failure(FailKind.RETRY, "connect_refused", "nobody listens"))
    await store.claim(nonce="n2")
    (again,) = await grants.read()
    assert isinstance(again, Grant)
    assert again.attempt == 2


async def test_the_body_of_an_attached_job_never_enters_redis(store: Store) -> None:
    await store.attach(body=b'{"prompt":"a secret"}')
    claimed = await store.claim()
    assert claimed.body == ""
    assert await store.redis.exists(store.keys.request("j1")) == 0


async def test_grants_that_nobody_reads_any_more_expire(store: Store) -> None:
    await store.attach()
    await store.claim()
    assert 0 < await store.redis.pttl(store.keys.of("grants", HOLDER)) <= 60_000


async def test_the_api_hears_of_every_end_but_those_that_it_brought_about(store: Store) -> None:
    grants = _grants(store)
    await store.attach("cancelled")
    await store.jobs.cancel("cancelled", "no longer needed")
    await store.attach("rejected")
    await store.jobs.reject("rejected", "no_model", "nothing serves it", ())
    await store.attach("expired")
    await store.pass_deadline("expired")
    await store.jobs.expire(overstay_ms=60_000)
    for job in ("finished", "failed"):
        await store.attach(job)
        await store.claim(job, f"nonce of {job}")
    await store.finish("finished")
    await store.fail("failed", kind=FailKind.FAILED)
    ends = [one for one in await grants.read() if isinstance(one, Ended)]
    assert [(one.job_id, one.state, one.error_type) for one in ends] == [
        ("cancelled", JobState.CANCELLED, "cancelled"),
        ("rejected", JobState.FAILED, "no_model"),
        ("expired", JobState.EXPIRED, "deadline"),
    ]
    assert ends[1].detail == "nothing serves it"


async def test_the_api_hears_that_somebody_asked_to_cancel_what_it_runs(store: Store) -> None:
    await store.attach()
    await store.claim()
    await store.jobs.cancel("j1", "no longer needed")
    assert (await _told(store))[-1] == CancelAsked("j1", 1, "no longer needed")


async def test_a_job_of_no_api_tells_nobody(store: Store) -> None:
    await store.start()
    await store.jobs.cancel("j1", "no longer needed")
    names = [name async for name in store.redis.scan_iter(match=f"{store.keys.namespace}:grants:*")]
    assert names == []


async def test_leases_are_renewed_together_and_each_is_answered(store: Store) -> None:
    await store.attach("kept")
    await store.claim("kept", "n1", lease_ms=3000)
    await store.start("asked", "n2")
    await store.jobs.cancel("asked", "no longer needed")
    outcomes = await store.jobs.renew_all([("kept", 1), ("asked", 1), ("kept", 2), ("gone", 1)], LEASE_MS)
    stale = RenewOutcome.STALE
    assert outcomes == [RenewOutcome.RENEWED, RenewOutcome.CANCEL, stale, stale]
    until = await store.redis.zscore(store.keys.static("leases"), "kept")
    assert until is not None
    assert until > await store.now_ms() + LEASE_MS / 2
    assert await store.jobs.renew_all([], LEASE_MS) == []


async def test_another_process_under_the_same_name_does_not_inherit_clients(store: Store) -> None:
    await store.attach()
    await store.redis.hset(store.keys.services, "api-1", '{"boot": "other", "heartbeat_ms": 9e15}')
    assert (await store.claim()).outcome is ClaimOutcome.ABANDONED
    (ended,) = await _told(store)
    assert isinstance(ended, Ended)
    assert (ended.state, ended.error_type) == (JobState.FAILED, "client_gone")


async def test_a_real_heartbeat_keeps_attached_jobs_alive(store: Store) -> None:
    await store.attach()
    await store.fleet.heartbeat("api-1", "5f0c", {"service": "api"})
    assert await store.jobs.sweep(grace_ms=0) == []
    assert (await store.claim()).outcome is ClaimOutcome.CLAIMED


@pytest.mark.parametrize("last_ms", [None, 3000])
async def test_silence_tells_nothing_while_redis_or_all_routers_stood_still(
    store: Store, last_ms: int | None
) -> None:
    """Heartbeats are as old as the standstill: everybody gets time for the next one."""
    await store.attach("waiting")
    await store.attach("running")
    await store.claim("running", "n1")
    await store.set_holder(alive=False)
    swept = store.keys.static("swept")
    await store.redis.delete(swept)
    if last_ms is not None:
        await store.redis.hset(swept, "last_ms", str(await store.now_ms() - last_ms))
    assert (await store.claim("waiting", "n2")).outcome is ClaimOutcome.AWAY
    assert await store.jobs.sweep(grace_ms=0) == []
    assert await store.jobs.sweep(grace_ms=0) == []
    assert (await store.claim("waiting", "n2")).outcome is ClaimOutcome.AWAY

    async def swept_at_last() -> bool:
        return bool(await store.jobs.sweep(grace_ms=0))

    await wait_until(swept_at_last, "the amnesty is over")
    for job in ("waiting", "running"):
        assert await store.state(job) == JobState.FAILED


async def test_a_job_whose_hash_was_deleted_by_hand_does_not_stay_attached(store: Store) -> None:
    await store.attach()
    await store.claim()
    await store.redis.delete(store.keys.job("j1"))
    await store.redis.hdel(store.keys.model(MODEL), "in_flight")
    await store.redis.delete(store.keys.of("placement", GPU))
    await store.set_holder(alive=False)
    await store.jobs.sweep(grace_ms=0)
    assert await store.redis.exists(store.keys.of("held_by", HOLDER)) == 0
    assert await store.redis.smembers(store.keys.static("attached")) == set()


async def test_sweeps_that_are_always_late_do_not_keep_a_dead_apis_jobs_for_ever(store: Store) -> None:
    await store.attach()
    await store.set_holder(alive=False)
    swept = store.keys.static("swept")
    await store.redis.delete(swept)

    async def late_sweep() -> bool:
        """As if the last look had been three seconds ago, at the end of what was then the present."""
        for field in ("last_ms", "amnesty_until_ms"):
            known = await store.redis.hget(swept, field)
            if known is not None:
                await store.redis.hset(swept, field, str(int(known) - 3000))
        return bool(await store.jobs.sweep(grace_ms=0))

    assert [await late_sweep() for _ in range(3)] == [False, False, True]
    assert await store.state() == JobState.FAILED
