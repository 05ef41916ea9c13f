"""A submission that Redis reads late or can't finish: the client is told no, so nothing is stored."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from shared.errors import ConfigError, StoreUnavailable
from shared.keys import Keys
from shared.store.jobs import JobStore
from shared.store.server import EmbeddedRedis
from tests.kit.fault_proxy import FaultProxy
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import BOUND, Store, new_job, open_store
from tests.kit.waiting import wait_until

_PATIENCE_S = 3.0
"""After this long an api tells its client that nothing was accepted."""


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(free_port(), tmp_path) as server:
        yield server


async def test_a_paused_server_accepts_nothing_that_its_client_gave_up_on(own_server: EmbeddedRedis) -> None:
    """What was sent lies in the server's socket buffers, and it reads it when it goes on."""
    async with open_store(own_server.url, fail_fast=True) as store, open_store(own_server.url) as other:
        await store.submit("before")
        ahead = await other.jobs.counts()
        assert own_server.pid is not None
        os.kill(own_server.pid, signal.SIGSTOP)
        asked = time.monotonic()
        try:
            with pytest.raises(StoreUnavailable):
                await store.submit("late")
            await wait_until(lambda: time.monotonic() > asked + _PATIENCE_S, "the patience is over")
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        assert await store.submit("after") == "ACCEPTED"
        calls = (await other.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert calls >= 4, "the late submission must have been read"
        assert (await other.state("late"), await other.jobs.counts()) == ("absent", (ahead[0] + 1, 0))
        await other.check()


async def test_the_first_submission_learns_the_clock_and_later_ones_need_one_call(store: Store) -> None:
    async with FaultProxy(store.url) as proxy, open_store(proxy.url) as behind:
        assert await behind.submit("j1") == "ACCEPTED"
        first = proxy.commands.count("EVALSHA")
        assert await behind.submit("j2") == "ACCEPTED"
        assert proxy.commands.count("EVALSHA") == first + 1


@pytest.mark.parametrize("name", ["requests", "events", "live", "index", "targets"])
async def test_a_job_that_cannot_be_stored_whole_is_not_stored_at_all(store: Store, name: str) -> None:
    """Redis keeps what a script wrote before its error."""
    await store.redis.set(store.keys.static(name), "not what it should be")
    before = await store.dump()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await store.jobs.submit(new_job(), bound=BOUND, idempotency="key", digest="d")
    assert await store.dump() == before
    await store.redis.flushall()


@pytest.mark.parametrize("name", ["events", "live", "index", "targets"])
async def test_a_request_written_by_hand_is_not_stored_in_part_either(store: Store, name: str) -> None:
    entry = await store.deliver({"v": "1", "prompt": "hi"})
    await store.redis.set(store.keys.static(name), "not what it should be")
    before = await store.dump()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await store.jobs.admit_new(entry, new_job(f"x-{entry}"), bound=BOUND, raw="{}")
    assert await store.dump() == before
    await store.redis.flushall()


@pytest.mark.parametrize("retention_s", [0.0, 1e13, 1e19])
async def test_a_retention_that_redis_cannot_take_is_refused(store: Store, retention_s: float) -> None:
    with pytest.raises(ConfigError, match=r"jobs\.retention_s"):
        JobStore(store.redis, Keys(), retention_s=retention_s)
