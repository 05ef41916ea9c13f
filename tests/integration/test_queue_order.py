"""Order within one queue: urgency, fairness between callers, and nobody left behind (docs/adr/0005)."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.store.records import FailKind
from tests.kit.store_dump import Dump, violations
from tests.kit.store_fixture import Store, open_store

TARGET = "auto:Chat"
STEP_MS = 30_000
"""What one step of priority is worth by default."""
CONTENDS_BELOW = 5e12
CALLERS = ("ann", "bob", "cas", None)
BOOSTS_MS = (0, 1, 3, 20, 10**6)
_HISTORY = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


async def submit(store: Store, job_id: str, caller: str | None, priority: int = 5) -> None:
    boost_ms = priority * STEP_MS
    assert await store.submit(job_id, caller=caller, boost_ms=boost_ms, bound=5000) == "ACCEPTED"


async def flood(store: Store, caller: str | None, count: int, priority: int = 5) -> None:
    await asyncio.gather(
        *(submit(store, f"{caller}-{priority}-{number:04d}", caller, priority) for number in range(count))
    )


async def take(store: Store) -> str:
    """Claim what the queue puts first; its id."""
    view = await store.fleet.view(heads=1)
    head = view.targets[0].heads[0].job_id
    assert (await store.claim(head, secrets.token_hex(4), limit=10_000, gpus=())).outcome == "CLAIMED"
    return head


async def takes_until(store: Store, job_id: str) -> int:
    """How many others go before a job."""
    for others in range(5000):
        if await take(store) == job_id:
            return others
    raise AssertionError(f"{job_id} never came up")


async def age(store: Store, job_id: str, by_ms: float) -> None:
    """Let a contending job have come by so much earlier, and with it its caller's turn."""
    fields = (await store.job(job_id)).fields
    line = store.keys.of("caller", f"{len(TARGET)}:{TARGET}:{fields['caller']}")
    for queue in (store.keys.ready(TARGET), line):
        score = await store.redis.zincrby(queue, -by_ms, job_id)
        assert score is not None
        assert score < CONTENDS_BELOW
    for name in ("place", "score"):
        await store.redis.hset(store.keys.job(job_id), name, f"{float(fields[name]) - by_ms:.3f}")


async def test_a_flood_of_one_caller_lets_another_in_after_one_job(store: Store) -> None:
    await flood(store, "greedy", 1000)
    await submit(store, "single", "modest")
    assert await takes_until(store, "single") == 1


async def test_a_flood_without_a_name_counts_as_one_caller(store: Store) -> None:
    await flood(store, None, 1000)
    await submit(store, "single", "modest")
    assert await takes_until(store, "single") == 1


async def test_many_floods_delay_a_single_job_by_one_job_each(store: Store) -> None:
    for number in range(5):
        await flood(store, f"greedy{number}", 40)
    for _ in range(17):
        await take(store)
    await submit(store, "single", "modest")
    assert await takes_until(store, "single") <= 5


async def test_two_floods_take_turns_however_late_the_second_came(store: Store) -> None:
    await flood(store, "early", 60)
    for _ in range(20):
        await take(store)
    await flood(store, "late", 30)
    taken = Counter([(await take(store)).split("-")[0] for _ in range(20)])
    assert taken == {"early": 10, "late": 10}


async def test_the_jobs_of_one_pass_are_shared_out_as_single_takes_are(store: Store) -> None:
    for caller in ("ann", "bob", None):
        await flood(store, caller, 5)
    heads = [head.job_id for head in (await store.fleet.view(heads=9)).targets[0].heads]
    assert Counter(head.split("-")[0] for head in heads) == {"ann": 3, "bob": 3, "None": 3}
    assert [await take(store) for _ in heads] == heads


async def test_a_caller_with_nothing_waiting_starts_anew(store: Store) -> None:
    """What it got before is not held against it."""
    await flood(store, "greedy", 20)
    for _ in range(20):
        await take(store)
    await submit(store, "again", "greedy")
    await flood(store, "other", 20)
    assert await takes_until(store, "again") == 0


async def test_the_most_urgent_job_goes_first_whoever_sent_it(store: Store) -> None:
    await flood(store, "ann", 50, priority=0)
    await flood(store, "bob", 50, priority=0)
    await submit(store, "own", "ann", priority=9)
    await submit(store, "foreign", "cas", priority=9)
    assert [await take(store), await take(store)] == ["own", "foreign"]


async def test_a_job_of_least_priority_is_passed_for_270_seconds_at_most(store: Store) -> None:
    await submit(store, "low", "ann", priority=0)
    await flood(store, "urgent", 30, priority=9)
    for _ in range(10):
        assert await take(store) != "low"
    await age(store, "low", 9 * STEP_MS)
    assert await takes_until(store, "low") <= 1


async def test_a_callers_own_urgent_jobs_pass_its_older_ones_for_the_gap_at_most(store: Store) -> None:
    await submit(store, "old", "ann", priority=0)
    await submit(store, "next", "ann", priority=9)
    assert await take(store) == "next"
    await age(store, "old", 9 * STEP_MS)
    await submit(store, "late", "ann", priority=9)
    assert await take(store) == "old"


async def test_a_job_that_leaves_untaken_passes_its_callers_turn_on(store: Store) -> None:
    await submit(store, "a0", "ann")
    await submit(store, "a1", "ann")
    await submit(store, "b0", "bob")
    await store.jobs.cancel("a0", "no longer needed")
    assert [await take(store), await take(store)] == ["a1", "b0"]


async def test_a_retried_job_keeps_the_turn_that_it_had(store: Store) -> None:
    await submit(store, "a0", "ann")
    await submit(store, "a1", "ann")
    await submit(store, "b0", "bob")
    assert await take(store) == "a0"
    assert await store.fail("a0") == "QUEUED"
    assert [await take(store) for _ in range(3)] == ["a0", "b0", "a1"]


async def test_callers_and_targets_that_read_alike_stay_apart(store: Store) -> None:
    await store.submit("one", target="auto:Chat", caller="x")
    await store.submit("two", target="auto", caller="Chat:x")
    assert [len(target.heads) for target in (await store.fleet.view(heads=3)).targets] == [1, 1]
    await store.check()


class _History:
    """Calls on one queue, and what the order must have kept to at each of them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.callers: dict[str, str | None] = {}
        self.boosts: dict[str, int] = {}
        self.running: list[str] = []
        self.retried: set[str] = set()
        self.passes: dict[str, Counter[str | None]] = {}
        """Takes of each caller since a contending job came forward, by that job."""

    async def submit(self, x: int) -> None:
        job = f"j{len(self.boosts)}"
        caller, boost = CALLERS[x % len(CALLERS)], BOOSTS_MS[x // len(CALLERS) % len(BOOSTS_MS)]
        self.callers[job], self.boosts[job] = caller, boost
        await self.store.submit(job, caller=caller, boost_ms=boost)

    async def take(self, x: int) -> None:
        before = await self.store.dump()
        waiting = before.zsets.get(self.store.keys.ready(TARGET), {})
        if not waiting:
            return
        heads = [one.job_id for one in (await self.store.fleet.view(heads=1 + x % 4)).targets[0].heads]
        for head in heads:
            claimed = await self.store.claim(head, secrets.token_hex(4), limit=10_000, gpus=())
            assert claimed.outcome == "CLAIMED"
            self._check_own_line(head, waiting, before)
            self._check_shares(head)
            self.running.append(head)
            waiting = {job: score for job, score in waiting.items() if job != head}
            await self.follow()

    async def retry(self, x: int) -> None:
        if self.running:
            job = self.running.pop(x % len(self.running))
            self.retried.add(job)
            attempt = int((await self.store.job(job)).fields["attempt"])
            assert await self.store.fail(job, attempt) == "QUEUED"

    async def cancel(self, x: int) -> None:
        waiting = sorted(job for job in self.boosts if job not in self.running)
        if waiting:
            await self.store.jobs.cancel(waiting[x % len(waiting)], "no longer needed")

    async def hand_over(self, x: int) -> None:
        if self.running:
            job = self.running.pop(x % len(self.running))
            self.retried.add(job)
            attempt = int((await self.store.job(job)).fields["attempt"])
            assert await self.store.fail(job, attempt, FailKind.RELEASED) == "QUEUED"

    async def follow(self) -> None:
        """What must hold after each step, and who contends since when."""
        state = await self.store.dump()
        assert violations(state, self.store.keys) == []
        ready = state.zsets.get(self.store.keys.ready(TARGET), {})
        contending = [job for job, score in ready.items() if score < CONTENDS_BELOW]
        self.passes = {job: self.passes.get(job, Counter()) for job in contending}

    def _check_own_line(self, head: str, waiting: dict[str, float], state: Dump) -> None:
        """Invariant 7: of the same caller nobody is overtaken by more than the boost gap."""
        arrived = state.zsets[self.store.keys.static("index")]
        for other in waiting.keys() - {head} - self.retried:
            if head not in self.retried and self.callers[other] == self.callers[head]:
                # Places are stored in microseconds: two roundings.
                gap = self.boosts[head] - self.boosts[other]
                assert arrived[head] - arrived[other] <= gap + 0.002, (head, other)

    def _check_shares(self, head: str) -> None:
        """Of callers no more urgent than it a contending job lets at most one job each go first."""
        caller = self.callers[head]
        for job, passed in self.passes.items():
            if self.callers[job] == caller or {job, head} & self.retried:
                continue
            if self.boosts[head] <= self.boosts[job]:
                passed[caller] += 1
                assert passed[caller] <= 1, (head, job)


_CALLS = (_History.submit, _History.take, _History.retry, _History.cancel, _History.hand_over)
_STEPS = st.lists(
    st.tuples(st.sampled_from((0, 0, 0, 0, 1, 1, 1, 2, 3, 4)), st.integers(0, 200)), min_size=15, max_size=40
)


@_HISTORY
@given(steps=_STEPS)
def test_no_history_breaks_order_or_shares(redis_url: str, steps: list[tuple[int, int]]) -> None:
    async def play() -> None:
        async with open_store(redis_url) as store:
            await store.redis.flushall()
            history = _History(store)
            for call, x in steps:
                await _CALLS[call](history, x)
                await history.follow()

    asyncio.run(play())
