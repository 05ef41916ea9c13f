"""The life of a job in Redis: one typed call per transition, each backed by one replay-safe script."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from shared.config import HistorySettings
from shared.errors import StoreUnavailable
from shared.keys import ROUTER_GROUP, Keys
from shared.store.client import REDIS_ERRORS, translated
from shared.store.job_reads import JobReads, is_id
from shared.store.orders import claim_order, job_order, verdict_order
from shared.store.records import (
    AdmitOutcome,
    CancelOutcome,
    Claimed,
    ClaimOrder,
    ClaimOutcome,
    FailOutcome,
    Failure,
    Finished,
    FinishOutcome,
    HoldOutcome,
    NewJob,
    RejectOutcome,
    RenewOutcome,
    SubmitOutcome,
    Submitted,
    Taken,
)
from shared.store.scripts import Scripts, encoded
from shared.store.together import Together

_RAW_FIELD_CAP = 2_000
"""Characters of one raw field kept in the dead-letter stream: enough to recognise it, not to fill Redis."""
SUBMIT_PATIENCE_S = 2.5
"""How long a submission may be under way: less than the 3 s after which an api says that nothing happened."""
_LATE = "LATE"
_TAKEN = "TAKEN"


class JobStore(JobReads):
    """Transitions and reads of jobs; raises ``StoreUnavailable`` when Redis can't serve now."""

    def __init__(
        self, redis: Redis, keys: Keys, history: HistorySettings | None = None, retention_s: float = 86_400.0
    ) -> None:
        super().__init__(redis, keys)
        self._scripts = Scripts(redis, keys, history or HistorySettings(), retention_s)
        self._finishes = Together(lambda words: self._run("finish", *words))
        # Redis' clock less ours in ms, as the last reply had it: at most that reply's way too low. Unknown at
        # first, so that the first submission is late and learns it.
        self._clock_ahead_ms = -math.inf

    async def submit(
        self,
        job: NewJob,
        *,
        bound: int,
        idempotency: str | None = None,
        digest: str = "",
        start: ClaimOrder | None = None,
    ) -> Submitted:
        """Accept a job unless ``bound`` jobs wait or a limit of its API key is reached.

        ``job.id`` doubles as the nonce of a replay. ``idempotency`` is a hashed client key, ``digest`` the
        hash of the request that it stands for. A Redis that gets to it only after the client's time-out (it
        was paused) writes nothing. ``start``: a decision of the api: the job starts at once where nobody
        waits and all that the decision assumed still holds, to be run by that api if its client waits there,
        else by the router that reads of it.
        """
        order: dict[str, Any] = {**job_order(job, start), "bound": bound}
        if idempotency is not None:
            order |= {"idempotency": idempotency, "digest": digest}
        # Late without a time-out: our idea of Redis' clock was wrong, and the reply has put it right.
        until_ms = _clock_ms() + SUBMIT_PATIENCE_S * 1000
        for _ in range(2):
            not_after_ms = max(0, until_ms + self._clock_ahead_ms)
            order["not_after_ms"] = not_after_ms
            outcome, job_id, rate, now_ms, *more = await self._run("submit", encoded(order), job.body)
            self._clock_ahead_ms = int(now_ms) - _clock_ms()
            if outcome != _LATE:
                return _submitted(outcome, job_id, rate, now_ms, more)
        raise StoreUnavailable("it took too long to accept the job: nothing was accepted")

    async def acknowledge(self, entries: Sequence[tuple[str, str]]) -> list[str]:
        """Ack intake entries ``(entry, job id)`` of accepted jobs; answers with those of unknown jobs."""
        pairs = [item for pair in entries for item in pair]
        return list(await self._run("acknowledge", ROUTER_GROUP, *pairs))

    async def admit_known(self, entry_id: str, job_id: str, raw: str = "") -> tuple[AdmitOutcome, str]:
        """Ack the intake entry of a job that ``submit`` accepted; an unknown one goes to the dead letters."""
        return await self._admit({"entry": entry_id, "job_id": job_id, "raw": raw}, b"")

    async def admit_new(
        self, entry_id: str, job: NewJob, *, bound: int, raw: str
    ) -> tuple[AdmitOutcome, str]:
        """Accept a job that somebody XADDed by hand, and ack its entry, in one step."""
        order = {"entry": entry_id, "create": {**job_order(job), "bound": bound}, "raw": raw}
        return await self._admit(order, job.body)

    async def admit_dead(self, entry_id: str, reason: str, fields: Mapping[str, str]) -> None:
        """Move an entry that can't be read to the dead letters, with the reason and what it said."""
        await self._admit({"entry": entry_id, "reason": reason, "raw": raw_fields(fields)}, b"")

    async def claim(self, order: ClaimOrder) -> Claimed:
        """Start an attempt if everything that the decision assumed still holds."""
        return (await self.claim_all([order]))[0]

    async def claim_all(self, orders: Sequence[ClaimOrder]) -> list[Claimed]:
        """``claim`` for several jobs in order; what stands behind a refused one in its queue is skipped."""
        return [_claimed(reply) for reply in await self._run("claim", *map(claim_order, orders))]

    async def hold(self, job_id: str, code: str, reason: str, decision: Sequence[str]) -> HoldOutcome:
        """Say why the head of a queue waits; written only when the code differs from the last one."""
        return HoldOutcome(await self._run("hold", verdict_order(job_id, code, reason, decision)))

    async def reject(self, job_id: str, code: str, reason: str, decision: Sequence[str]) -> RejectOutcome:
        """End a waiting job as failed because no model could ever serve it."""
        return RejectOutcome(await self._run("reject", verdict_order(job_id, code, reason, decision)))

    async def take(self, job_id: str, attempt: int, router: str, lease_ms: int) -> Taken | None:
        """Take an attempt that an api started for the routers; None if it is not to be had any more."""
        outcome, *found = await self._run("take", job_id, attempt, router, lease_ms)
        return Taken(int(found[0]), found[1]) if outcome == _TAKEN else None

    async def renew(
        self, job_id: str, attempt: int, lease_ms: int, router: str | None = None
    ) -> RenewOutcome:
        """Keep the lease of one attempt for ``lease_ms`` more."""
        return (await self.renew_all([(job_id, attempt)], lease_ms, router))[0]

    async def renew_all(
        self, attempts: Sequence[tuple[str, int]], lease_ms: int, router: str | None = None
    ) -> list[RenewOutcome]:
        """Keep the leases of many attempts ``(job id, attempt)`` at once; an outcome for each.

        ``router``: who runs them, None for what an api runs itself (also of ``finish`` and ``fail``).
        """
        pairs = [item for pair in attempts for item in pair]
        return [RenewOutcome(outcome) for outcome in await self._run("renew", lease_ms, router or "", *pairs)]

    async def finish(
        self,
        job_id: str,
        attempt: int,
        *,
        result: str,
        fields: Mapping[str, str],
        learned: Mapping[str, float],
        router: str | None = None,
    ) -> Finished:
        """Record a success; ``learned`` updates the model's moving averages (its hash fields)."""
        # One NaN in a moving average would stay in it for ever.
        numbers = {name: value for name, value in learned.items() if math.isfinite(value)}
        order: dict[str, Any] = {
            "id": job_id,
            "attempt": attempt,
            "fields": dict(fields),
            "learned": numbers,
            **_by(router),
        }
        outcome, waiting = await self._finishes.call((encoded(order), result))
        return Finished(FinishOutcome(outcome), int(waiting))

    async def fail(
        self, job_id: str, attempt: int, failure: Failure, router: str | None = None
    ) -> FailOutcome:
        """Record that an attempt ended without success; the script decides between retry and an end."""
        order = {
            "id": job_id,
            "attempt": attempt,
            "kind": failure.kind.value,
            "error_type": failure.error_type,
            "detail": failure.detail,
            "delay_ms": failure.delay_ms,
            "charge": int(failure.charge),
            "model_failure": failure.model_failure.value,
            "saturated_ms": failure.saturated_ms,
            "name_unknown_ms": failure.name_unknown_ms,
            "fields": dict(failure.fields),
            **_by(router),
        }
        return FailOutcome(await self._run("fail", encoded(order)))

    async def cancel(self, job_id: str, reason: str) -> tuple[CancelOutcome, str]:
        """Cancel a job; answers with its state."""
        if not is_id(job_id):
            return CancelOutcome.UNKNOWN, ""
        outcome, state = await self._run("cancel", job_id, reason)
        return CancelOutcome(outcome), state

    async def sweep(self, *, grace_ms: int, limit: int = 100) -> list[str]:
        """Take back jobs whose lease ran out over ``grace_ms`` ago, end those whose api is gone; the ids."""
        return list(await self._run("sweep", grace_ms, limit))

    async def promote(self, *, limit: int = 1000) -> tuple[list[str], int | None]:
        """Queue delayed jobs that are due; their ids and the ms until the next one is."""
        moved, next_in = await self._run("promote", limit)
        return list(moved), int(next_in) if next_in else None

    async def expire(self, *, overstay_ms: int, limit: int = 200) -> list[str]:
        """End jobs whose deadline passed: waiting ones at once, running ones after ``overstay_ms`` more."""
        return list(await self._run("expire", overstay_ms, limit))

    async def mend_queue(self, target: str) -> list[str]:
        """Take out of a queue whatever is no waiting job (its hash was deleted by hand); the ids.

        Looks at every key of the server: for the queue where ``view`` shows such a one, not as a routine.
        """
        return list(await self._run("mend", target))

    async def trim_requests(self, *, limit: int = 1000) -> int:
        """Trim settled intake entries beyond the history; how many went."""
        return int(await self._run("trim", ROUTER_GROUP, limit))

    async def _admit(self, order: Mapping[str, Any], body: bytes) -> tuple[AdmitOutcome, str]:
        reply = await self._run("admit", encoded({**order, "group": ROUTER_GROUP}), body)
        outcome = AdmitOutcome(reply[0])
        return outcome, reply[2] if outcome is AdmitOutcome.DEAD else reply[1]

    async def _run(self, name: str, *args: str | bytes | int) -> Any:
        try:
            return await self._scripts.run(name, *args)
        except REDIS_ERRORS as error:
            raise await translated(self._redis, error) from error


def raw_fields(fields: Mapping[str, str]) -> str:
    """The fields of an entry as JSON for the dead letters, long values cut with their length said."""
    return json.dumps({name[:200]: _capped(value) for name, value in list(fields.items())[:100]})


def _submitted(outcome: str, job_id: str, rate: str, now_ms: str, more: Sequence[Any]) -> Submitted:
    kind, per_s, at_ms = SubmitOutcome(outcome), float(rate), int(now_ms)
    if not more:
        return Submitted(kind, job_id, per_s, now_ms=at_ms)
    if kind is SubmitOutcome.LIMITED:
        return Submitted(kind, job_id, per_s, limit=more[0], again_ms=more[1], now_ms=at_ms)
    return Submitted(kind, job_id, per_s, now_ms=at_ms, position=more[0] + 1, hold=more[1])


def _claimed(reply: Sequence[Any]) -> Claimed:
    outcome = ClaimOutcome(reply[0])
    if outcome is not ClaimOutcome.CLAIMED:
        return Claimed(outcome)
    return Claimed(outcome, int(reply[1]), int(reply[2]), reply[3])


def _by(router: str | None) -> dict[str, str]:
    return {} if router is None else {"router": router}


def _clock_ms() -> float:
    return time.monotonic() * 1000


def _capped(value: str) -> str:
    if len(value) <= _RAW_FIELD_CAP:
        return value
    return f"{value[:_RAW_FIELD_CAP]}... ({len(value)} characters)"
