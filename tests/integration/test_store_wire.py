"""Calls that share connections: each gets its own answer, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.errors import StoreUnavailable
from shared.store.client import connect_commands
from shared.store.records import CancelOutcome
from shared.store.server import EmbeddedRedis
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.ports import free_port
from tests.kit.store_fixture import BOUND, Store, new_job, open_store
from tests.kit.waiting import wait_until


async def test_every_one_of_many_calls_at_once_gets_its_own_answer(store: Store) -> None:
    jobs = [f"j{number}" for number in range(200)]
    outcomes = await asyncio.gather(*(store.submit(job) for job in jobs))
    assert outcomes == ["ACCEPTED"] * 200
    cancelled = await asyncio.gather(
        *(store.jobs.cancel(job, "enough") for job in jobs[::2]), store.jobs.cancel("never was", "enough")
    )
    assert cancelled[:-1] == [(CancelOutcome.CANCELLED, "cancelled")] * 100
    assert cancelled[-1] == (CancelOutcome.UNKNOWN, "")
    assert [await store.state(job) for job in jobs[:4]] == ["cancelled", "queued", "cancelled", "queued"]


async def test_a_script_that_the_server_has_lost_is_loaded_once_for_all_who_need_it(store: Store) -> None:
    await store.submit("j1")
    await store.redis.script_flush()
    outcomes = await asyncio.gather(*(store.jobs.cancel("j1", "enough") for _ in range(20)))
    assert {outcome for outcome, _ in outcomes} == {CancelOutcome.CANCELLED}


async def test_one_wrong_call_does_not_spoil_those_that_go_out_with_it(store: Store) -> None:
    await store.redis.set(store.keys.ready("broken"), "no queue")
    jobs = [
        store.submit(f"j{number}", target="broken" if number == 5 else "auto:Chat") for number in range(10)
    ]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    wrong = [number for number, answer in enumerate(answers) if isinstance(answer, Exception)]
    assert wrong == [5]
    assert "WRONGTYPE" in str(answers[5])
    await store.redis.delete(store.keys.ready("broken"))


async def test_a_caller_that_leaves_takes_nobodys_answer(store: Store) -> None:
    await store.submit("warm")
    calls = [asyncio.create_task(store.submit(f"j{number}")) for number in range(50)]
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    cancelled = await store.jobs.cancel("warm", "enough")
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert cancelled == (CancelOutcome.CANCELLED, "cancelled")
    assert [answer for answer in answers if not isinstance(answer, BaseException)] == ["ACCEPTED"] * 33


async def test_all_hear_of_a_server_that_is_away(store: Store) -> None:
    async with FaultProxy(store.url) as proxy:
        url = proxy.url
    redis = connect_commands(url, "nowhere", fail_fast=True)
    gone = store.elsewhere("gone")
    lost = type(gone.jobs)(redis, gone.keys)
    calls = [lost.submit(new_job(f"j{number}"), bound=BOUND) for number in range(5)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
    await redis.aclose()


async def test_a_call_that_hangs_holds_the_others_up_for_a_moment_only(store: Store) -> None:
    async with FaultProxy(store.url) as proxy, open_store(proxy.url, fail_fast=True) as slow:
        await slow.submit("warm")
        proxy.spoil(Fault.BLACKHOLE, at=len(proxy.commands) + 1)
        hanging = asyncio.create_task(slow.submit("hanging"))
        await wait_until(lambda: proxy.spoiled, "the first call hangs")
        since = time.monotonic()
        await wait_until(lambda: time.monotonic() - since > 0.1, "it is known to hang")
        assert await slow.jobs.cancel("warm", "enough") == (CancelOutcome.CANCELLED, "cancelled")
        assert not hanging.done()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_a_large_call_goes_by_itself(store: Store) -> None:
    body = b'{"prompt":"%s"}' % (b"x" * 100_000)
    await store.submit("warm")
    large = [store.submit(f"large {number}", body=body) for number in range(5)]
    small = [store.submit(f"small {number}") for number in range(5)]
    assert await asyncio.gather(*large, *small) == ["ACCEPTED"] * 10


async def test_it_introduces_itself_as_the_url_says(tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path) as server:
        plain = connect_commands(server.url, "plain")
        await plain.config_set("requirepass", "s3cret")
        url = server.url.replace("//", "//:s3cret@").replace("/0", "/3")
        async with open_store(url) as store:
            assert await store.submit("j1") == "ACCEPTED"
            clients: Any = await store.redis.client_list()
            sharing = [one for one in clients if one["cmd"] == "evalsha"]
            assert [(one["name"], one["db"], one["user"]) for one in sharing] == [
                ("test.cmd", "3", "default")
            ]
        await plain.aclose()


async def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path) as server:
        plain = connect_commands(server.url, "plain")
        await plain.config_set("requirepass", "s3cret")
        client = connect_commands(server.url.replace("//", "//:wrong@"), "stranger", fail_fast=True)
        with pytest.raises(AuthenticationError, match="WRONGPASS"):
            await client.wires.call("PING")
        await client.aclose()
        await plain.aclose()


async def test_what_does_not_speak_redis_is_said() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-somebody\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = connect_commands(f"redis://127.0.0.1:{port}", "lost", fail_fast=True)
        with pytest.raises(RedisConnectionError, match="does not speak Redis"):
            await client.wires.call("PING")
        await client.aclose()


async def test_a_client_that_is_closed_leaves_no_connection_and_no_call_waiting(store: Store) -> None:
    async with FaultProxy(store.url) as proxy:
        client = connect_commands(proxy.url, "closing")
        assert await client.wires.call("PING") == "PONG"
        proxy.spoil(Fault.BLACKHOLE, at=len(proxy.commands) + 1)
        hanging = asyncio.create_task(client.wires.call("PING"))
        await wait_until(lambda: proxy.spoiled, "the call hangs")
        await client.aclose()
        with pytest.raises(RedisConnectionError, match="closed"):
            await hanging


async def test_half_a_surrogate_pair_goes_out_as_redis_py_sends_it(store: Store) -> None:
    await store.submit("j1")
    assert await store.jobs.cancel("j1", "cut \ud83d off") == (CancelOutcome.CANCELLED, "cancelled")
    assert (await store.job("j1")).fields["error_detail"] == "cut \\ud83d off"


@pytest.mark.parametrize(("name", "value"), [("maxclients", "1"), ("requirepass", "changed")])
async def test_a_server_that_refuses_connections_for_a_while_is_away_and_no_bug(
    tmp_path: Path, name: str, value: str
) -> None:
    with EmbeddedRedis(free_port(), tmp_path) as server:
        admin = connect_commands(server.url, "admin", connections=1)
        async with open_store(server.url, fail_fast=True) as store:
            assert await store.submit("j1") == "ACCEPTED"
            before: Any = await admin.config_get(name)
            await admin.config_set(name, value)
            await admin.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(StoreUnavailable):
                await store.submit("j2")
            await admin.config_set(name, before[name])
            assert await store.submit("j3") == "ACCEPTED"
        await admin.aclose()


async def test_a_closed_client_connects_no_more_and_leaves_no_task() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent_clients.append(writer)

    silent_clients: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = connect_commands(f"redis://127.0.0.1:{port}", "closing")
        call = asyncio.create_task(client.wires.call("PING"))
        await wait_until(lambda: silent_clients, "it connects")
        await client.aclose()
        with pytest.raises(RedisConnectionError, match="closed"):
            await call
        with pytest.raises(RedisConnectionError, match="closed"):
            await client.wires.call("PING")
        for writer in silent_clients:
            writer.close()
    others = [task for task in asyncio.all_tasks() if "_open" in str(task.get_coro())]
    assert others == []


async def test_false_is_an_answer(store: Store) -> None:
    client = connect_commands(store.url, "resp3")
    assert await client.wires.call("EVAL", "redis.setresp(3) return false", 0) is False
    await client.aclose()


async def test_a_silent_connection_is_dropped_also_when_nobody_waits_any_more(store: Store) -> None:
    async with FaultProxy(store.url) as proxy:
        client = connect_commands(proxy.url, "silent", fail_fast=True)
        assert await client.wires.call("PING") == "PONG"
        proxy.spoil(Fault.BLACKHOLE, at=len(proxy.commands) + 1)
        call = asyncio.create_task(client.wires.call("PING"))
        await wait_until(lambda: proxy.spoiled, "the call hangs")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await wait_until(lambda: not proxy.links, "it is dropped")
        await client.aclose()
