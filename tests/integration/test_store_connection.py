"""Connections: checks before a server is used, time-outs, retries, pools, and a server that fails."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from shared.errors import StoreUnavailable, StoreUnusable
from shared.store.client import (
    BLOCK_S,
    check_server,
    connect_commands,
    wait_for_server,
)
from shared.store.server import EmbeddedRedis
from shared.store.streams import Intake
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import Store, open_store


async def test_a_sound_server_is_accepted_without_a_warning(store: Store) -> None:
    assert await check_server(store.redis) == []


async def test_a_server_that_is_too_old_is_refused(store: Store) -> None:
    version = str((await store.redis.info("server"))["redis_version"])
    old = "6" + version[1:]
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as behind:
        proxy.replace(f"redis_version:{version}".encode(), f"redis_version:{old}".encode())
        with pytest.raises(StoreUnusable, match=f"Redis {old} is too old: 7.0 or newer"):
            await check_server(behind.redis)


async def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    server = EmbeddedRedis(free_port(), tmp_path)
    client = connect_commands(server.url, "early", fail_fast=True)
    waiting = asyncio.create_task(wait_for_server(client))
    with pytest.raises(StoreUnavailable):
        await check_server(client)
    with server:
        assert await waiting == []
        await client.aclose()


async def test_a_mistake_of_ours_is_not_taken_for_an_outage(store: Store) -> None:
    """Retrying it for ever would hide the bug."""
    await store.redis.set(store.keys.events, "not a stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await store.submit()
    await store.redis.flushall()


async def test_a_blocking_read_ends_before_its_socket_gives_up(store: Store) -> None:
    """H4: redis-py's own default is 5 s for both."""
    timeout_s = store.reader.connection_pool.connection_kwargs["socket_timeout"]
    assert timeout_s >= BLOCK_S + 1
    assert store.reader.connection_pool.connection_kwargs["retry"].get_retries() == 0


async def test_ten_times_as_many_calls_as_connections_all_succeed(redis_url: str) -> None:
    """H5: they queue for a connection instead of failing."""
    client = connect_commands(redis_url, "test", connections=4)
    answers = await asyncio.gather(*(client.incr("t:calls") for _ in range(40)))
    assert sorted(answers) == list(range(1, 41))
    assert len(await client.client_list()) <= 4 + 1
    await client.aclose()


@pytest.mark.parametrize(("fail_fast", "sends"), [(True, 2), (False, 6)])
async def test_a_call_is_sent_as_often_as_its_client_says(store: Store, fail_fast: bool, sends: int) -> None:
    """H26: one layer of retries; the api gives up soon, the router later."""
    async with FaultProxy(store.url) as proxy, open_store(proxy.url, fail_fast=fail_fast) as behind:
        await behind.state()
        proxy.spoil(Fault.CUT, name="EVALSHA", times=1000)
        with pytest.raises(StoreUnavailable):
            await behind.submit()
        assert proxy.commands.count("EVALSHA") == sends
        proxy.spoil(Fault.CUT, times=0)


async def test_a_cancelled_call_leaves_its_connection_in_step(redis_url: str) -> None:
    """H18: the next call gets its own reply, not the one that the cancelled call left behind."""
    client = connect_commands(redis_url, "test", connections=1)
    await client.mset({"t:a": "a", "t:b": "b"})
    for round_number in range(300):
        reading = asyncio.ensure_future(client.get("t:a"))
        for _ in range(round_number % 6):
            await asyncio.sleep(0)
        reading.cancel()
        assert await client.get("t:b") == "b"
        await asyncio.gather(reading, return_exceptions=True)
    await client.aclose()


async def test_closing_leaves_no_socket_behind(redis_url: str) -> None:
    """H19: a forgotten one is a ResourceWarning, and warnings fail tests."""
    for _ in range(3):
        async with open_store(redis_url) as store:
            await asyncio.gather(*(store.state() for _ in range(10)))
            await Intake(store.reader, store.keys, "r1").ensure()
        assert store.redis.connection_pool._in_use_connections == set()
    del store
    gc.collect()


async def test_scripts_are_loaded_again_after_the_server_forgot_them(store: Store) -> None:
    await store.submit()
    await store.redis.script_flush()
    assert (await store.claim()).outcome == "CLAIMED"
