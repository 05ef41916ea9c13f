"""The store on a real Redis for tests: typed calls, rewriting of times, and invariants checked at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.config import HistorySettings
from shared.keys import Keys
from shared.store.client import connect_commands, connect_reader
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.lines import LineClient
from shared.store.records import (
    Claimed,
    ClaimOrder,
    ClaimOutcome,
    FailKind,
    Failure,
    GpuClaim,
    JobRecord,
    NewJob,
    StreamEntry,
)
from shared.store.streams import Intake, read_range
from tests.kit.store_dump import Dump, dump, violations

MODEL, GPU = "alpha", "host/0"
HOLDER = "api-1.5f0c"
"""The ``Presence.holder`` of an api."""
LEASE_MS = 30_000
BOUND = 1000
GRANT = (
    *(
        "model",
        MODEL,
        "backend",
        "llama_cpp",
        "url",
        "http://127.0.0.1:1",
        "upstream_name",
        MODEL,
        "gpu",
        GPU,
    ),
    *("code", "best", "reason", "it fits", "tries", "0", "estimated_duration_ms", "250"),
)
DECISION = ("action", "dispatch", "code", "best", "reason", "it fits")


@dataclass(frozen=True)
class Store:
    """The store's calls over one namespace, and short forms of the common ones."""

    url: str
    redis: Redis
    reader: LineClient
    keys: Keys
    jobs: JobStore
    fleet: FleetStore

    async def submit(self, job_id: str = "j1", *, bound: int = BOUND, **changes: Any) -> str:
        """Accept a job; its outcome."""
        job = new_job(job_id, **changes)
        return str((await self.jobs.submit(job, bound=bound)).outcome)

    async def claim(self, job_id: str = "j1", nonce: str = "n1", **changes: Any) -> Claimed:
        return await self.jobs.claim(order(job_id, nonce, **changes))

    async def start(self, job_id: str = "j1", nonce: str = "n1", **changes: Any) -> int:
        """Submit and claim a job; its attempt. ``changes`` are those of the job."""
        await self.submit(job_id, **changes)
        claimed = await self.claim(job_id, nonce)
        assert claimed.outcome is ClaimOutcome.CLAIMED
        return claimed.attempt

    async def finish(self, job_id: str = "j1", attempt: int = 1, /, **learned: float) -> str:
        ended = await self.jobs.finish(job_id, attempt, result='{"text": "hi"}', fields={}, learned=learned)
        return str(ended.outcome)

    async def fail(
        self, job_id: str = "j1", attempt: int = 1, kind: FailKind = FailKind.RETRY, **changes: Any
    ) -> str:
        return str(await self.jobs.fail(job_id, attempt, Failure(kind, "broken", "it broke", **changes)))

    async def job(self, job_id: str = "j1") -> JobRecord:
        found = await self.jobs.get(job_id)
        assert found is not None
        return found

    async def state(self, job_id: str = "j1") -> str:
        """The job's state, ``absent`` without one."""
        found = await self.jobs.get(job_id)
        return "absent" if found is None else str(found.state)

    async def deliver(self, fields: Mapping[str, str], consumer: str = "r1") -> str:
        """Put an entry into the request stream and read it as this consumer: it is now pending."""
        entry = await self.request(**fields)
        intake = Intake(self.reader, self.keys, consumer)
        await intake.ensure()
        assert entry in [read.id for read in await intake.read(1000)]
        return entry

    async def request(self, entry_id: str = "*", **fields: str) -> str:
        """XADD to the request stream as a person with redis-cli does; the entry's id."""
        pairs: Any = fields
        return str(await self.redis.xadd(self.keys.requests, pairs, id=entry_id))

    async def events(self, job_id: str | None = None) -> list[StreamEntry]:
        found = await read_range(self.redis, self.keys.events, count=10_000)
        return [entry for entry in found if job_id in (None, entry.fields["job_id"])]

    async def kinds(self, job_id: str = "j1") -> list[str]:
        """The job's event types without their ``job.``, oldest first."""
        return [entry.fields["type"].removeprefix("job.") for entry in await self.events(job_id)]

    async def model(self, name: str = MODEL) -> Mapping[str, str]:
        fields: Any = await self.redis.hgetall(self.keys.model(name))
        return {**fields}

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def lapse_lease(self, job_id: str = "j1") -> None:
        """Let the lease have run out a minute ago."""
        past = await self.now_ms() - 60_000
        assert await self.redis.zadd(self.keys.static("leases"), {job_id: past}, xx=True, ch=True) == 1

    async def pass_deadline(self, job_id: str = "j1", *, ago_ms: int = 1000) -> None:
        """Let the deadline have passed this long ago."""
        past = await self.now_ms() - ago_ms
        assert await self.redis.zadd(self.keys.static("live"), {job_id: past}, xx=True, ch=True) == 1
        await self.redis.hset(self.keys.job(job_id), "deadline_ms", str(past))

    async def make_due(self, job_id: str = "j1") -> None:
        """Let the delay of a retry be over."""
        assert await self.redis.zadd(self.keys.static("delayed"), {job_id: 1}, xx=True, ch=True) == 1

    async def set_holder(self, *, alive: bool) -> None:
        """Let the api of ``HOLDER`` have said something just now, or long ago, with all routers at work."""
        instance, _, boot = HOLDER.rpartition(".")
        now = await self.now_ms()
        # Far in the future: a slow machine must not take it for gone.
        heartbeat = now + 600_000 if alive else now - 600_000
        entry = json.dumps({"boot": boot, "heartbeat_ms": heartbeat, "service": "api"})
        await self.redis.hset(self.keys.services, instance, entry)
        await self.redis.hset(self.keys.static("swept"), "last_ms", str(now + 600_000))

    async def attach(self, job_id: str = "j1", **changes: Any) -> str:
        """Accept a job whose client waits on a connection of the living ``HOLDER``; its outcome."""
        await self.set_holder(alive=True)
        return await self.submit(job_id, attached_to=HOLDER, **changes)

    async def forget(self, job_id: str = "j1") -> None:
        """Let the TTL of an ended job be over and its events be trimmed."""
        await self.redis.delete(*(self.keys.of(part, job_id) for part in ("job", "request", "result")))
        gone = [entry.id for entry in await self.events(job_id)]
        await self.redis.xdel(self.keys.events, *gone)

    def elsewhere(self, namespace: str) -> Store:
        """The same connections over another namespace."""
        keys = Keys(namespace)
        jobs, fleet = JobStore(self.redis, keys), FleetStore(self.redis, keys)
        return Store(self.url, self.redis, self.reader, keys, jobs, fleet)

    async def dump(self) -> Dump:
        return await dump(self.redis, self.keys)

    async def check(self) -> None:
        """Fail if anything that must always hold does not."""
        assert violations(await self.dump(), self.keys) == []


def new_job(job_id: str = "j1", *, target: str = "auto:Chat", **changes: Any) -> NewJob:
    """A job as ``submission.new_job`` makes it; ``fields`` change single fields of its hash."""
    fields = {"model": "", "agent_type": "Chat", "priority": "5", "max_attempts": "3"}
    fields |= changes.pop("fields", {})
    defaults = {"boost_ms": 0, "deadline_in_ms": 600_000, "body": b'{"prompt":"hi"}'}
    return NewJob(id=job_id, target=target, fields=fields, **{**defaults, **changes})


def order(
    job_id: str = "j1",
    nonce: str = "n1",
    *,
    model: str = MODEL,
    limit: int = 100,
    gpus: tuple[GpuClaim, ...] = (GpuClaim(GPU, 100, 0),),
    router: str = "router-1",
    lease_ms: int = LEASE_MS,
) -> ClaimOrder:
    """A decision to run a job on ``model``."""
    fields = {
        "decision_action": "dispatch",
        "decision_code": "best",
        "decision_reason": "it fits",
        "decision_model": model,
        "decision_backend": "llama_cpp",
    }
    return ClaimOrder(job_id, nonce, router, lease_ms, model, limit, gpus, fields, DECISION, GRANT)


@asynccontextmanager
async def open_store(
    url: str,
    namespace: str = "orch",
    *,
    history: HistorySettings | None = None,
    fail_fast: bool = False,
) -> AsyncIterator[Store]:
    """A store with connections of its own, closed on leaving."""
    async with AsyncExitStack() as stack:
        redis = connect_commands(url, "test", fail_fast=fail_fast)
        stack.push_async_callback(redis.aclose)
        reader = connect_reader(url, "test")
        stack.push_async_callback(reader.aclose)
        keys = Keys(namespace)
        yield Store(
            url, redis, reader, keys, JobStore(redis, keys, history), FleetStore(redis, keys, history)
        )


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """The store on the session's server; what must always hold is checked when the test is over."""
    async with open_store(redis_url) as opened:
        yield opened
        await opened.check()
