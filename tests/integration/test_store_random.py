"""Any history of calls, in any order and with any times: after each one everything that must hold holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.store.records import FailKind, Failure, GpuClaim, KeyLimits, ModelFailure
from tests.kit.store_dump import violations
from tests.kit.store_fixture import Store, new_job, open_store, order

JOBS = 4
MODELS = ("alpha", "beta")


class History:
    """Calls on a few jobs by routers that know, from earlier claims, attempts that may be over by now."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.claims = 0

    async def submit(self, job: int, x: int) -> None:
        caller = f"caller-{x % 2}" if x % 3 else None
        fields = {"max_attempts": str(1 + x % 3)}
        limits = KeyLimits("key", in_flight=3, queued=2) if x % 4 else None
        new = new_job(
            f"j{job}", target=MODELS[x % 2], caller=caller, boost_ms=x * 100, fields=fields, limits=limits
        )
        await self.store.jobs.submit(new, bound=3, idempotency=f"k{job}" if x > 5 else None, digest=str(x))

    async def claim(self, job: int, x: int) -> None:
        self.claims += 1
        # Every third one repeats the nonce of the one before, as a resent claim does.
        nonce = f"n{self.claims - (x % 3 == 0)}"
        gpus = tuple(GpuClaim(f"host/{number}", 2, 0) for number in range(x % 3))
        await self.store.jobs.claim(order(f"j{job}", nonce, model=MODELS[x % 2], limit=2, gpus=gpus))

    async def renew(self, job: int, x: int) -> None:
        await self.store.jobs.renew(f"j{job}", 1 + x % 3, 1000)

    async def finish(self, job: int, x: int) -> None:
        await self.store.finish(f"j{job}", 1 + x % 3, avg_latency_ms=float(x))

    async def fail(self, job: int, x: int) -> None:
        kinds, blames = list(FailKind), list(ModelFailure)
        failure = Failure(
            kinds[x % len(kinds)], "broken", "it broke", delay_ms=(x % 2) * 60_000, charge=x % 4 > 1,
            model_failure=blames[x % len(blames)], saturated_ms=x,
        )  # fmt: skip
        await self.store.jobs.fail(f"j{job}", 1 + x % 3, failure)

    async def cancel(self, job: int, x: int) -> None:
        await self.store.jobs.cancel(f"j{job}", f"reason {x}")

    async def hold(self, job: int, x: int) -> None:
        await self.store.jobs.hold(f"j{job}", ("model_busy", "critical")[x % 2], "wait", ())

    async def reject(self, job: int, x: int) -> None:
        await self.store.jobs.reject(f"j{job}", f"code-{x}", "nothing serves it", ())

    async def lose(self, job: int, x: int) -> None:
        await self._rewrite("leases", job, await self.store.now_ms() - 1000 * x)

    async def make_due(self, job: int, x: int) -> None:
        await self._rewrite("delayed", job, x)

    async def pass_deadline(self, job: int, x: int) -> None:
        past = await self.store.now_ms() - 10_000 * x
        if await self._rewrite("live", job, past):
            await self.store.redis.hset(self.store.keys.job(f"j{job}"), "deadline_ms", str(past))

    async def half_open(self, job: int, x: int) -> None:
        name = self.store.keys.model(MODELS[job % 2])
        if await self.store.redis.hexists(name, "breaker_open_until_ms"):
            await self.store.redis.hset(name, "breaker_open_until_ms", str(x))

    async def tidy(self, job: int, x: int) -> None:
        await self.store.jobs.sweep(grace_ms=3000, limit=1 + x % 2)
        await self.store.jobs.promote(limit=1 + job % 2)
        await self.store.jobs.expire(overstay_ms=30_000, limit=1 + x % 2)

    async def _rewrite(self, table: str, job: int, score: int) -> bool:
        member = {f"j{job}": score}
        return bool(await self.store.redis.zadd(self.store.keys.static(table), member, xx=True, ch=True))


CALLS: Mapping[str, Callable[[History, int, int], Awaitable[None]]] = {
    "submit": History.submit, "claim": History.claim, "renew": History.renew, "finish": History.finish,
    "fail": History.fail, "cancel": History.cancel, "hold": History.hold, "reject": History.reject,
    "lose": History.lose, "make_due": History.make_due, "pass_deadline": History.pass_deadline,
    "half_open": History.half_open, "tidy": History.tidy,
}  # fmt: skip
_STEP = st.tuples(
    # What moves a job on comes up more often than what ends it.
    st.sampled_from([*CALLS, "submit", "submit", "claim", "claim", "claim", "fail", "fail", "tidy"]),
    st.integers(0, JOBS - 1),
    st.integers(0, 9),
)


@pytest.mark.parametrize("chunk", range(2))
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(_STEP, min_size=20, max_size=45))
def test_no_history_breaks_what_must_always_hold(
    redis_url: str, chunk: int, steps: list[tuple[str, int, int]]
) -> None:
    """After each of the calls, and after the same call again."""

    async def play() -> None:
        async with open_store(redis_url) as store:
            await store.redis.flushall()
            history = History(store)
            for name, job, x in steps:
                for _ in range(1 + chunk):
                    await CALLS[name](history, job, x)
                state = await store.dump()
                assert violations(state, store.keys) == [], f"after {name} j{job} {x}"

    asyncio.run(play())
