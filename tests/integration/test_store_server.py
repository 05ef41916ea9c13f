"""A server that is unfit, full, demoted, busy, emptied or killed: what is refused, and what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.errors import StoreUnavailable, StoreUnusable
from shared.store.client import check_server, connect_commands, wait_for_server
from shared.store.fleet import GpuSample
from shared.store.records import AdmitOutcome, FailKind
from shared.store.server import EmbeddedRedis
from shared.store.streams import Follower, Intake
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import BOUND, DECISION, Store, new_job, open_store
from tests.kit.waiting import wait_until


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server that a test may reconfigure, and must put right again."""
    with EmbeddedRedis(free_port(), tmp_path_factory.mktemp("own")) as server:
        yield server


@pytest.fixture
async def own(own_server: EmbeddedRedis) -> AsyncIterator[Store]:
    """A store on the server that may be reconfigured."""
    async with open_store(own_server.url, fail_fast=True) as store:
        await store.redis.flushall()
        yield store
        await store.check()


@asynccontextmanager
async def configured(store: Store, name: str, value: str) -> AsyncIterator[None]:
    """The server with another setting, put right again afterwards."""
    old = str((await store.redis.config_get(name))[name])
    await store.redis.config_set(name, value)
    try:
        yield
    finally:
        await store.redis.config_set(name, old)


async def test_a_server_without_an_append_only_file_is_warned_of(own: Store) -> None:
    async with configured(own, "appendonly", "no"):
        (warning,) = await check_server(own.redis)
    assert "CONFIG SET appendonly yes" in warning


async def test_an_evicting_server_is_refused(own: Store) -> None:
    """H25."""
    async with configured(own, "maxmemory-policy", "allkeys-lru"):
        with pytest.raises(StoreUnusable, match="CONFIG SET maxmemory-policy noeviction"):
            await check_server(own.redis)


async def test_a_wrong_password_is_said_instead_of_waited_out(own: Store) -> None:
    stranger = connect_commands(own.url.replace("//", "//:wrong@"), "stranger", fail_fast=True)
    nobody = connect_commands(own.url, "nobody", fail_fast=True)
    async with configured(own, "requirepass", "secret"):
        for client in (stranger, nobody):
            with pytest.raises(StoreUnusable, match=r"password of redis\.url"):
                await wait_for_server(client)
    await stranger.aclose()
    await nobody.aclose()


async def test_a_full_server_still_lets_work_end(own: Store) -> None:
    """At maxmemory nothing new comes in and nothing half-written stays; what runs can end."""
    for job_id in ("done", "broken", "lost", "stopped"):
        await own.start(job_id)
    for job_id in ("first", "unwanted", "hopeless", "late"):
        await own.submit(job_id)
    await own.start("delayed")
    await own.fail("delayed", delay_ms=60_000)
    await own.make_due("delayed")
    entry = await own.deliver({"v": "1", "prompt": "hi"})
    await own.lapse_lease("lost")
    await own.pass_deadline("late")
    await own.redis.script_flush()
    async with configured(own, "maxmemory", "1"):
        before = await own.dump()
        with pytest.raises(StoreUnavailable):
            await own.submit("new")
        with pytest.raises(StoreUnavailable):
            await own.jobs.admit_new(entry, new_job("new"), bound=BOUND, raw="{}")
        assert await own.dump() == before
        assert await _end_what_can_end(own) == [
            "FINISHED", "FAILED", "['lost']", "(['delayed'], None)", "['late']", "RENEWED", "CANCELLED",
            "HELD", "REJECTED", "CLAIMED", "0", "('STORED', 1)", "1",
        ]  # fmt: skip
    assert await own.submit("new") == "ACCEPTED"
    job = new_job(f"x-{entry}")
    assert (await own.jobs.admit_new(entry, job, bound=BOUND, raw="{}"))[0] is AdmitOutcome.CREATED


async def _end_what_can_end(store: Store) -> list[str]:
    level = {"pressure": "low", "full": "0", "thermal": "normal"}
    await store.fleet.heartbeat("router-1", "boot", {})
    answers = [
        await store.finish("done"),
        await store.fail("broken", kind=FailKind.FAILED),
        await store.jobs.sweep(grace_ms=0),
        await store.jobs.promote(),
        await store.jobs.expire(overstay_ms=0),
        await store.jobs.renew("stopped", 1, 30_000),
        (await store.jobs.cancel("unwanted", "full"))[0],
        await store.jobs.hold("first", "busy", "all are busy", DECISION),
        await store.jobs.reject("hopeless", "no_model", "none serves it", DECISION),
        (await store.claim("first", "n9")).outcome,
        await store.jobs.trim_requests(),
        await store.fleet.publish_gpu(GpuSample("host/0", "boot", 1, 0, {}, level), ttl_s=5),
        len((await store.fleet.view(heads=1)).targets),
    ]
    return [str(answer) for answer in answers]


async def test_a_demoted_server_is_an_outage_and_is_used_again_afterwards(own: Store) -> None:
    """H17: the connections to it are dropped, since they would lead to the same server for ever."""
    await own.submit()
    before = {client["id"] for client in await own.redis.client_list() if client["name"] == "test.cmd"}
    await own.redis.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreUnavailable):
        await own.claim()
    after = {client["id"] for client in await own.redis.client_list() if client["name"] == "test.cmd"}
    await own.redis.replicaof("NO", "ONE")
    assert before.isdisjoint(after)
    assert (await own.claim()).outcome == "CLAIMED"


async def test_a_server_busy_with_somebody_elses_script_is_an_outage(own: Store) -> None:
    endless = connect_commands(own.url, "endless", fail_fast=True)

    async def refused() -> bool:
        try:
            await own.submit()
        except StoreUnavailable as error:
            return str(error).startswith("BUSY")
        return False

    async with configured(own, "busy-reply-threshold", "1"):
        running = asyncio.ensure_future(endless.eval("while true do end", 0))
        await wait_until(refused, "the server says BUSY")
        await own.redis.script_kill()
        await asyncio.gather(running, return_exceptions=True)
    await endless.aclose()


async def test_a_reader_goes_on_after_flushall(own: Store) -> None:
    """H16: the group is gone, in the middle of a blocking read as well as between two."""
    intake = Intake(own.reader, own.keys, "router-1")
    await intake.ensure()
    blocked = asyncio.create_task(intake.read(10))
    await wait_until(lambda: _blocked_readers(own), "the read blocks")
    await own.redis.flushall()
    assert await blocked == []
    await own.redis.flushall()
    assert await intake.own_pending(10) == []
    await own.redis.flushall()
    assert await intake.reclaim(idle_ms=0, count=10) == []
    await own.redis.flushall()
    assert await intake.forget_idle_consumers(idle_ms=0) == []
    entry = await own.request(v="1", prompt="hi")
    found: list[str] = []
    while not found:
        found = [read.id for read in await intake.read(10)]
    assert found == [entry]


async def test_a_follower_goes_on_after_flushall(own: Store) -> None:
    follower = Follower(own.reader, {own.keys.events: "$", own.keys.control: "$"})
    await own.submit("before")
    await follower.settle()
    await own.submit("between")
    read = await follower.read()
    assert [entry.fields["job_id"] for _, entry in read] == ["between"]
    await own.redis.flushall()
    # Ids begin anew: one of the same millisecond could be the very id that was read last.
    await wait_until(lambda: _clock_is_past(own, read[-1][1].id), "the next millisecond")
    await own.submit("after")
    assert [entry.fields["job_id"] for _, entry in await follower.read()] == ["after"]
    assert set(follower.positions) == {own.keys.events, own.keys.control}


async def _clock_is_past(store: Store, entry_id: str) -> bool:
    seconds, microseconds = await store.redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000 > int(entry_id.partition("-")[0])


async def _blocked_readers(store: Store) -> bool:
    return int((await store.redis.info("clients"))["blocked_clients"]) > 0


async def test_killed_and_restarted_servers_lose_nothing_and_readers_recover(tmp_path: Path) -> None:
    """H16: three times SIGKILL under a writer and a reader: what was accepted is settled once."""
    accepted: list[str] = []
    settled: list[str] = []
    followed: list[str] = []
    with EmbeddedRedis(free_port(), tmp_path) as server:
        async with open_store(server.url, fail_fast=True) as store:
            writing = asyncio.create_task(_write(store, accepted))
            reading = asyncio.create_task(_read(store, settled))
            follower = Follower(store.reader, {store.keys.events: "0-0"})
            following = asyncio.create_task(_follow(follower, followed))
            for _ in range(3):
                goal = len(settled) + 20

                def flowing(goal: int = goal) -> bool:
                    return len(settled) >= goal

                await wait_until(flowing, "jobs flow")
                server.kill()
                await asyncio.to_thread(server.start)
            goal = len(settled) + 20
            await wait_until(lambda: len(settled) >= goal, "jobs flow")
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await wait_until(lambda: set(accepted) <= set(settled), "all that was accepted is settled")
            await wait_until(lambda: set(accepted) <= set(followed), "a follower saw all of it")
            for task in (reading, following):
                task.cancel()
            await asyncio.gather(reading, following, return_exceptions=True)
            assert len(set(settled)) == len(settled)
            assert len(set(followed)) == len(followed)
            await store.check()


async def _write(store: Store, accepted: list[str]) -> None:
    number = 0
    while True:
        number += 1
        try:
            await store.submit(f"j{number}", bound=1_000_000)
        except StoreUnavailable:
            await asyncio.sleep(0)
        else:
            accepted.append(f"j{number}")


async def _read(store: Store, settled: list[str]) -> None:
    intake = Intake(store.reader, store.keys, "router-1")
    unsettled: dict[str, str] = {}
    while True:
        try:
            await intake.ensure()
            # One whose ack was answered by a broken connection may be acked, and no longer pending.
            unsettled |= {entry.id: entry.fields["job_id"] for entry in await intake.own_pending(100)}
            while True:
                for entry_id, job_id in list(unsettled.items()):
                    await store.jobs.admit_known(entry_id, job_id)
                    settled.append(unsettled.pop(entry_id))
                unsettled = {entry.id: entry.fields["job_id"] for entry in await intake.read(100)}
        except StoreUnavailable:
            await asyncio.sleep(0)


async def _follow(follower: Follower, followed: list[str]) -> None:
    while True:
        try:
            followed += [entry.fields["job_id"] for _, entry in await follower.read()]
        except StoreUnavailable:
            await asyncio.sleep(0)
