"""Whole lives of jobs with one command spoiled: for every command and every fault, the same end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StoreUnavailable
from shared.store.fleet import BackendSample, GpuSample
from shared.store.records import FailKind, Failure, StreamEntry
from shared.store.streams import Intake
from tests.kit.fault_proxy import Fault, FaultProxy, take_commands
from tests.kit.store_dump import Dump, violations
from tests.kit.store_fixture import BOUND, DECISION, HOLDER, LEASE_MS, MODEL, Store, new_job, open_store

_Answer = TypeVar("_Answer")


async def _insist(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Repeat the same call with the same ids until Redis answers, as the services do."""
    for _ in range(5):
        try:
            return await call()
        except StoreUnavailable:
            continue
    return await call()


@dataclass(frozen=True)
class _Life:
    """The services' side of a job's life: ``store`` goes through the proxy, ``direct`` does not."""

    store: Store
    direct: Store

    async def take_in(self) -> None:
        """What the router's intake does until nothing is left to settle."""
        intake = Intake(self.store.reader, self.store.keys, "router-1")
        await _insist(intake.ensure)
        for entry in await self._read(intake):
            await self._settle(entry)

    async def _read(self, intake: Intake) -> list[StreamEntry]:
        try:
            return await intake.read(10)
        except StoreUnavailable:
            await _insist(intake.ensure)
        found = await _insist(lambda: intake.own_pending(10))
        found = found or await _insist(lambda: intake.read(10))
        # A read that arrives late fills the pending list after we looked there: reclaim finds it.
        return found or await _insist(lambda: intake.reclaim(idle_ms=0, count=10))

    async def _settle(self, entry: StreamEntry) -> None:
        jobs = self.store.jobs
        if "job_id" in entry.fields:
            await _insist(lambda: jobs.admit_known(entry.id, entry.fields["job_id"]))
        elif "prompt" in entry.fields:
            job = new_job(f"x-{entry.id}")
            await _insist(lambda: jobs.admit_new(entry.id, job, bound=BOUND, raw="{}"))
        else:
            await _insist(lambda: jobs.admit_dead(entry.id, "no prompt", entry.fields))

    async def submit(self) -> None:
        job = new_job("j1", caller="ann")
        await _insist(lambda: self.store.jobs.submit(job, bound=BOUND, idempotency="key", digest="d"))

    async def start(self, job_id: str = "j1", nonce: str = "n1") -> int:
        view = await _insist(lambda: self.store.fleet.view(heads=4))
        assert [head.job_id for target in view.targets for head in target.heads] == [job_id]
        claimed = await _insist(lambda: self.store.claim(job_id, nonce))
        assert claimed.outcome == "CLAIMED"
        return claimed.attempt

    async def renew(self, job_id: str, attempt: int) -> str:
        return str(await _insist(lambda: self.store.jobs.renew(job_id, attempt, LEASE_MS)))

    async def finish(self, job_id: str, attempt: int) -> None:
        assert await _insist(lambda: self.store.finish(job_id, attempt, avg_latency_ms=5.0)) == "FINISHED"

    async def fail(self, job_id: str, attempt: int, failure: Failure) -> str:
        return str(await _insist(lambda: self.store.jobs.fail(job_id, attempt, failure)))


async def _succeeds(life: _Life) -> None:
    await life.submit()
    await life.take_in()
    assert await life.start() == 1
    assert await life.renew("j1", 1) == "RENEWED"
    await life.finish("j1", 1)


async def _retried(life: _Life) -> None:
    await life.direct.request("1-1", v="1", prompt="hi")
    await life.take_in()
    attempt = await life.start("x-1-1")
    broken = Failure(FailKind.RETRY, "broken", "it broke", delay_ms=60_000, charge=True)
    assert await life.fail("x-1-1", attempt, broken) == "QUEUED"
    await life.direct.make_due("x-1-1")
    await _insist(life.store.jobs.promote)
    assert await life.start("x-1-1", "n2") == 2
    await life.finish("x-1-1", 2)


async def _cancelled(life: _Life) -> None:
    await life.submit()
    await life.start()
    await _insist(lambda: life.store.jobs.cancel("j1", "no longer needed"))
    assert await life.renew("j1", 1) == "CANCEL"
    assert await life.fail("j1", 1, Failure(FailKind.CANCELLED, "cancelled", "as asked")) == "CANCELLED"


async def _lost(life: _Life) -> None:
    """Its router dies, the next one holds it, then its deadline passes."""
    await life.submit()
    await life.start()
    await life.direct.lapse_lease("j1")
    await _insist(lambda: life.store.jobs.sweep(grace_ms=0))
    await _insist(lambda: life.store.jobs.hold("j1", "model_busy", "alpha is busy", DECISION))
    await life.direct.pass_deadline("j1")
    await _insist(lambda: life.store.jobs.expire(overstay_ms=60_000))


async def _refused(life: _Life) -> None:
    await life.direct.request("1-1", v="1", nonsense="x")
    await life.take_in()
    await life.submit()
    await _insist(lambda: life.store.jobs.reject("j1", "no_model", "nothing serves it", DECISION))
    await _insist(life.store.jobs.trim_requests)


async def _attached(life: _Life) -> None:
    """Granted to its api, which finds one backend dead, gets another, and is asked to stop."""
    await life.direct.set_holder(alive=True)
    job = new_job("j1", attached_to=HOLDER)
    await _insist(lambda: life.store.jobs.submit(job, bound=BOUND))
    await life.take_in()
    assert await life.start() == 1
    dead = Failure(FailKind.RETRY, "connect_refused", "nobody listens")
    assert await life.fail("j1", 1, dead) == "QUEUED"
    assert await life.start("j1", "n2") == 2
    assert await life.renew("j1", 2) == "RENEWED"
    await _insist(lambda: life.store.jobs.cancel("j1", "no longer needed"))
    assert await life.fail("j1", 2, Failure(FailKind.CANCELLED, "cancelled", "as asked")) == "CANCELLED"


async def _orphaned(life: _Life) -> None:
    """Its api dies while it runs."""
    await life.direct.set_holder(alive=True)
    await _insist(lambda: life.store.jobs.submit(new_job("j1", attached_to=HOLDER), bound=BOUND))
    await life.start()
    await life.direct.set_holder(alive=False)
    await _insist(lambda: life.store.jobs.sweep(grace_ms=0))


async def _published(life: _Life) -> None:
    fleet = life.store.fleet
    level = {"pressure": "low", "full": "0", "thermal": "normal"}
    for seq in (1, 2):
        gpu = GpuSample("host/0", "boot", seq, 5000 - 1000 * seq, {"memory_used_mb": "10"}, level)
        await _insist(partial(fleet.publish_gpu, gpu, ttl_s=60))
    await _insist(lambda: fleet.publish_backend(BackendSample(MODEL, "boot", 1, 0, {"slots": "4"})))
    await _insist(lambda: fleet.heartbeat("monitor-1", "boot", {"service": "monitor"}))
    await _insist(lambda: fleet.heartbeat("monitor-2", "boot", {"service": "monitor"}))
    await _insist(lambda: fleet.retire("monitor-2", "boot"))


LIVES: Mapping[str, Callable[[_Life], Awaitable[None]]] = {
    "succeeds": _succeeds,
    "retried": _retried,
    "cancelled": _cancelled,
    "lost": _lost,
    "refused": _refused,
    "attached": _attached,
    "orphaned": _orphaned,
    "published": _published,
}


@dataclass(frozen=True)
class _End:
    """What a life left, and the commands that it took."""

    left: Mapping[str, Any]
    commands: Sequence[str]


async def _live(direct: Store, life: str, fault: Fault | None = None, at: int = 0) -> _End:
    namespace = f"{life}-{fault.value if fault else 'clean'}-{at}"
    fail_fast = fault is not Fault.CUT
    own = direct.elsewhere(namespace)
    async with FaultProxy(direct.url) as proxy:
        if fault is not None:
            proxy.spoil(fault, at=at)
        async with open_store(proxy.url, namespace, fail_fast=fail_fast) as store:
            await LIVES[life](_Life(store, own))
        assert proxy.spoiled or fault is None
    # Only now: a stalled command has reached the server by the time that the proxy is closed.
    left = await own.dump()
    assert violations(left, own.keys) == []
    return _End(_timeless(left, namespace), proxy.commands)


_VARYING = ("_ms", "_event", "score", "place", "failure_ema", "rate_10min", "rate_6h", "since_ms")
_WITH_TIMES = ("services", "jobs:holds")


def _timeless(left: Dump, namespace: str) -> dict[str, Any]:
    """What equal lives have in common: everything but times, and ids made of them."""

    def plain(fields: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in fields.items() if not name.endswith(_VARYING)}

    found: dict[str, Any] = dict.fromkeys(left.permanent, True)
    found |= {f"{name} fields": plain(fields) for name, fields in left.hashes.items()}
    found |= {f"{name} members": list(members) for name, members in left.zsets.items()}
    found |= {f"{name} members": sorted(members) for name, members in left.sets.items()}
    found |= {f"{name} entries": [plain(one.fields) for one in log] for name, log in left.streams.items()}
    found |= {f"{name} pending": entries for name, entries in left.pending.items()}
    found |= {f"{name} text": text for name, text in left.strings.items()}
    # Which minute a job ended in may differ; an instance's heartbeat is a time.
    ended = [name for name in found if ":jobs:ended:" in name]
    found["ended"] = sum(int(found.pop(name)) for name in ended)
    # Likewise the minute that a bucket of the forecast stands for: it counts what they add up to.
    for name in [name for name in found if ":history:" in name]:
        series, buckets = name.rpartition(":")[0], found.pop(name)
        found[series] = found.get(series, 0) + sum(int(raw.split()[0]) for raw in buckets.values())
    for name in _WITH_TIMES:
        fields = found.get(f"{namespace}:{name} fields", {})
        found[f"{namespace}:{name} fields"] = sorted(fields)
    return {name.removeprefix(namespace): value for name, value in found.items()}


_LIVES_AT_ONCE = 64
_FAULTS = (Fault.CUT, Fault.DROP_REPLY, Fault.STALL, Fault.BLACKHOLE)


def _cases(life: str, commands: Sequence[str]) -> list[tuple[Fault, int]]:
    """One life with each of its commands spoiled in every way, the others without what is the same in all:
    the handshake, the loading of scripts (whose first EVALSHA only says NOSCRIPT), silence."""
    if life == "succeeds":
        return [(fault, at) for fault in _FAULTS for at in range(1, len(commands) + 1)]
    following = (*commands[1:], "")
    numbers = [
        at
        for at, (name, after) in enumerate(zip(commands, following, strict=True), 1)
        if name.startswith(("EVAL", "XREAD", "XGROUP")) and after != "SCRIPT"
    ]
    return [(fault, at) for fault in _FAULTS if fault is not Fault.BLACKHOLE for at in numbers]


@given(
    commands=st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=4), min_size=1, max_size=5),
    chunk=st.integers(1, 30),
)
def test_the_proxy_tells_commands_apart_however_they_are_cut_up(
    commands: list[list[bytes]], chunk: int
) -> None:
    packed = [
        b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        for words in commands
    ]
    sent, buffer, found = b"".join(packed), bytearray(), list[bytes]()
    for start in range(0, len(sent), chunk):
        buffer += sent[start : start + chunk]
        found += take_commands(buffer)
    assert found == packed
    assert buffer == b""


@pytest.mark.slow
async def test_a_life_ends_the_same_whichever_of_its_commands_is_spoiled(store: Store) -> None:
    """H1-H4: each reply lost, each request lost, late or swallowed; one at a time."""
    clean = {life: await _live(store, life) for life in LIVES}
    wrong: list[str] = []

    # They share the direct connections, of which there are not many.
    places = asyncio.Semaphore(_LIVES_AT_ONCE)

    async def spoil(life: str, fault: Fault, at: int) -> None:
        async with places:
            left = (await _live(store, life, fault, at)).left
        end, expected = left, clean[life].left
        differing = {name for name in {*end, *expected} if end.get(name) != expected.get(name)}
        if differing:
            wrong.append(f"{life}: {fault} of {at} ({clean[life].commands[at - 1]}): {differing}")

    cases = [(life, *case) for life in LIVES for case in _cases(life, clean[life].commands)]
    assert len(cases) > 200
    await asyncio.gather(*(spoil(*case) for case in cases))

    assert wrong == []
