"""Apis, routers and Redis killed and frozen under streaming clients: no stop without a word, no slot lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.states import JobState
from shared.store.server import EmbeddedRedis
from tests.kit.configs import free_ports
from tests.kit.redis_fixture import empty
from tests.kit.stopwatch import Stopwatch
from tests.kit.stream_arena import APIS, ROUTERS, Arena, Client, open_arena
from tests.kit.stream_clients import Heard, Verdict
from tests.kit.waiting import wait_until
from tests.kit.word_server import WordServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(120)]

LEASE_S = 2.0
SWEPT_S = LEASE_S * 1.5
"""A lease is swept so long after its last renewal."""
FREED_S = 6.0
"""5 s by design: 3.5 s without a heartbeat, a second between two sweeps."""
FROZEN_S = 6.0
RECOVERY_S = 10.0
STOP_S = 10.0
SLOTS = {"wide": 64, "narrow": 2}


@asynccontextmanager
async def _open(directory: Path, redis_url: str, **router: Any) -> AsyncIterator[Arena]:
    servers = {name: WordServer(name, directory, slots=slots) for name, slots in SLOTS.items()}
    settings = {"retry_base_s": 0.05, "idle_timeout_s": 20.0, **router}
    async with open_arena(directory, redis_url, servers, {}, router=settings) as arena:
        yield arena


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_arena(
    tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis
) -> AsyncIterator[Arena]:
    """One stack for all tests of this module that leave Redis alone."""
    empty(redis_server.url)
    async with _open(tmp_path_factory.mktemp("kills"), redis_server.url) as arena:
        yield arena


@pytest_asyncio.fixture(loop_scope="module")
async def arena(whole_arena: Arena) -> AsyncIterator[Arena]:
    """The stack with every process up; after the test its history is sound and every slot is free."""
    await whole_arena.complete()
    yield whole_arena
    await whole_arena.journal()


async def test_a_killed_apis_jobs_fail_and_its_slots_go_to_the_clients_of_another(arena: Arena) -> None:
    dying = [arena.ask("api", "narrow", events=1000, pause_s=0.05) for _ in range(2)]
    await _answered(dying)
    waiting = [arena.ask("api", "narrow") for _ in range(3)]
    await _counts(arena, (3, 2))
    others = [arena.ask("api-2", "narrow") for _ in range(3)]
    await _counts(arena, (6, 2))
    doomed = await _held_by(arena, "api")
    killed_ms = await arena.now_ms()
    with Stopwatch(*arena.stack.pids) as watch:
        arena.kill("api")
        heard = await _all(others)
        assert [one.verdict() for one in heard] == [Verdict.COMPLETE] * 3
        assert all(one.cut for one in await _all([*dying, *waiting]))
        journal = await arena.journal()
        allowed_ms = (FREED_S + watch.away_s) * 1000
    assert len(doomed) == 5
    for job in doomed:
        end = journal.jobs[job][-1].fields
        assert (end["type"], end["error_type"]) == ("job.failed", "client_gone")
        assert int(end["ts_ms"]) - killed_ms <= allowed_ms
    starts = [entry.fields["type"] for job in doomed for entry in journal.jobs[job]].count("job.started")
    assert starts == len(dying), "a job without a client got a slot"


async def test_a_frozen_apis_clients_get_their_answers_or_an_error_once_it_wakes(arena: Arena) -> None:
    blocking = [arena.ask("api-2", "narrow", events=65, pause_s=0.2) for _ in range(2)]
    streams = [arena.ask("api", "wide", events=160, pause_s=0.05) for _ in range(6)]
    streams += [arena.ask("api", "wide", pace_s=0.02, events=800, size=4000) for _ in range(4)]
    await _answered([*blocking, *streams])
    waiting = [arena.ask("api", "narrow") for _ in range(3)]
    await _counts(arena, (3, 12))
    doomed = await _held_by(arena, "api")
    frozen = time.monotonic()
    arena.processes["api"].send_signal(signal.SIGSTOP)

    async def swept() -> bool:
        states = [(await arena.stack.jobs.get(job)) for job in doomed]
        return all(job is not None and job.state is JobState.FAILED for job in states)

    await wait_until(swept, "its jobs are swept", timeout_s=40)
    await wait_until(lambda: time.monotonic() - frozen > FROZEN_S, "it was frozen for long", timeout_s=20)
    arena.processes["api"].send_signal(signal.SIGCONT)

    for one in await _all([*streams, *blocking]):
        assert one.verdict() is Verdict.COMPLETE, (one.script, one.error)
    for one in await _all(waiting):
        # In the stream itself where it was told meanwhile how it stands.
        assert one.verdict() in (Verdict.REFUSED, Verdict.BROKEN)
        assert one.error["code"] == "client_gone"
    assert len(doomed) == 13
    assert (await _all([arena.ask("api", "narrow")]))[0].verdict() is Verdict.COMPLETE


async def test_streams_go_on_while_every_router_is_killed_in_the_midst_of_its_claims(arena: Arena) -> None:
    streams = [arena.ask(api, "wide", events=100, pause_s=0.05) for api in APIS for _ in range(8)]
    await _answered(streams)
    more = [arena.ask(api, "auto:Chat", events=5, pause_s=0.05) for api in APIS for _ in range(40)]

    async def claiming() -> bool:
        return await arena.running() > len(streams)

    await wait_until(claiming, "the routers claim")
    for name in ROUTERS:
        arena.kill(name)
    late = [arena.ask(api, "wide") for api in APIS]
    for name in ROUTERS:
        arena.start(name)

    heard = await _all([*streams, *more, *late])
    assert {one.verdict() for one in heard} == {Verdict.COMPLETE}
    journal = await arena.journal()
    for one in heard:
        events = [entry.fields["type"] for entry in journal.jobs[one.job_id]]
        assert (events.count("job.started"), events[-1]) == (1, "job.succeeded"), events


async def test_an_api_that_is_told_to_stop_under_load_leaves_nobody_without_a_word(arena: Arena) -> None:
    blocking = [arena.ask("api-2", "narrow", events=1000, pause_s=0.05) for _ in range(2)]
    long = [arena.ask("api-2", "wide", events=1000, pause_s=0.05) for _ in range(8)]
    slow = [arena.ask("api-2", "wide", pace_s=0.05, events=1000, size=4000) for _ in range(2)]
    await _answered([*blocking, *long, *slow])
    waiting = [arena.ask("api-2", "narrow") for _ in range(3)]
    await _counts(arena, (3, 12))
    short = [arena.ask("api-2", "wide", events=12, pause_s=0.05) for _ in range(8)]
    await _answered(short)
    doomed = await _held_by(arena, "api-2")
    with Stopwatch(arena.processes["api-2"].pid) as told:
        assert await arena.stack.stop(arena.processes["api-2"]) == 0
        assert told.elapsed_s < STOP_S

    assert {one.verdict() for one in await _all(short)} == {Verdict.COMPLETE}
    for one in await _all([*blocking, *long]):
        assert (one.verdict(), one.error["code"]) == (Verdict.BROKEN, "api_stopped")
    for one in await _all(waiting):
        assert (one.verdict(), one.status, one.error["code"]) == (Verdict.REFUSED, 503, "api_stopped")
    for _, client in slow:
        client.cancel()
    for job in doomed:
        record = await arena.stack.jobs.get(job)
        assert record is not None
        assert record.state not in (JobState.QUEUED, JobState.RUNNING)


async def test_a_retry_starts_when_it_is_due(arena: Arena) -> None:
    """The api that told of the failure rings no router; the routers have to heed what it wrote."""
    late_ms = 0.0
    with Stopwatch(*arena.stack.pids) as watch:
        for _ in range(8):
            _, client = arena.ask("api", "wide", stumbles=True)
            heard = await client
            assert heard.verdict() is Verdict.COMPLETE
            found = {entry.fields["type"]: entry.fields for entry in await arena.stack.events(heard.job_id)}
            retried = found["job.retried"]
            due_ms = int(retried["ts_ms"]) + int(retried.get("delay_ms", "0"))
            late_ms += int(found["job.started"]["ts_ms"]) - due_ms
        away_ms = watch.away_s * 1000
    # With a look every second, two routers would be late by 0.4 s each time.
    assert late_ms < 1600 + away_ms, f"8 retries started {late_ms} ms late, the machine was away {away_ms} ms"


async def test_streams_go_on_while_redis_is_killed_for_longer_than_a_lease(
    tmp_path: Path,
) -> None:
    port = free_ports(1)[0]
    with EmbeddedRedis(port, tmp_path / "redis") as redis:
        async with _open(tmp_path, redis.url, lease_s=LEASE_S) as arena:
            await _streams_outlive(redis, arena)


async def _streams_outlive(redis: EmbeddedRedis, arena: Arena) -> None:
    streams = [arena.ask(api, "wide", events=140, pause_s=0.05) for api in APIS for _ in range(8)]
    await _answered(streams)
    redis.kill()
    killed = time.monotonic()
    refused = await _all([arena.ask(api, "wide") for api in APIS])
    await wait_until(
        lambda: time.monotonic() - killed > SWEPT_S + 0.5, "every lease has run out", timeout_s=20
    )
    await asyncio.to_thread(redis.start)

    async def served() -> bool:
        return all(one.status == 200 for one in await _all([arena.ask(api, "narrow") for api in APIS]))

    with Stopwatch(*arena.stack.pids) as restarted:
        await wait_until(served, "both apis serve again")
        assert restarted.elapsed_s < RECOVERY_S
    for one in refused:
        assert (one.verdict(), one.status, one.error["code"]) == (Verdict.REFUSED, 503, "store_unavailable")
        assert int(one.headers["retry-after"]) > 0
    heard = await _all(streams)
    assert {one.verdict() for one in heard} == {Verdict.COMPLETE}
    ends = (await arena.journal()).ended()
    assert {ends[one.job_id] for one in heard} == {"job.succeeded"}


async def _all(clients: Iterable[Client]) -> list[Heard]:
    return [await client for _, client in clients]


async def _answered(clients: Iterable[Client]) -> None:
    """Every one of these clients has the first words of its answer."""
    heard = [one for one, _ in clients]
    await wait_until(lambda: all(one.answered for one in heard), "all are answered", timeout_s=60)


async def _counts(arena: Arena, expected: tuple[int, int]) -> None:
    async def reached() -> bool:
        return await arena.stack.jobs.counts() == expected

    await wait_until(reached, f"{expected} wait and run", timeout_s=60)


async def _held_by(arena: Arena, api: str) -> list[str]:
    """The jobs whose clients wait at this api now."""
    redis, keys = arena.stack.redis, arena.stack.keys
    instance = f"{arena.instances[api]}."
    holders: Any = await redis.smembers(keys.static("attached"))
    names = [keys.of("held_by", holder) for holder in holders if holder.startswith(instance)]
    return [str(job) for name in names for job in await redis.smembers(name)]
