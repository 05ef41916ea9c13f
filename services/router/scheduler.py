"""The scheduler: look at the head of every queue, ask the core, carry out what it says through the store."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from loguru import logger

from services.router.dispatcher import Attempt, Dispatcher, api_key_of
from services.router.orders import claim_order, decision_line
from services.router.wakeup import Wakeup
from shared.config import Settings
from shared.decision.routing import decide
from shared.decision.snapshot import Decision, Model, Request, Snapshot
from shared.errors import StoreUnavailable
from shared.snapshots import request_of, snapshot_of
from shared.states import Action, JobState
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.records import Claimed, ClaimOrder, ClaimOutcome, Head, RejectOutcome, TargetView, View

FIRST_HEADS = 2
"""Jobs read of each queue at a wake-up, which mostly frees one slot: one to take it, one to be held."""
MORE_HEADS = 8
"""Jobs read of each queue while more fit. Reading 8 of 60 queues takes twice as long as all the rest."""
FIRST_LEASE_S = 3.0
"""For the api of an attached job to accept it (architecture, "The OpenAI path")."""
_ENDED_BY_CLAIM = frozenset({ClaimOutcome.EXPIRED, ClaimOutcome.ABANDONED})
_AWAY_S = 0.25
_COLLISION_S = 0.02
_RETRY_LEAST_S = 0.02


class _Drained(IntEnum):
    """What is left of a queue after a look at its heads."""

    WAITS = 0
    """Nothing that could go now."""
    STALE = 1
    """Perhaps more, but the jobs shown were gone already."""
    MORE = 2
    """More than the view showed; some that it showed are through."""


class Scheduler:
    """Turns waiting jobs into claims until nothing more fits."""

    def __init__(
        self,
        jobs: JobStore,
        fleet: FleetStore,
        dispatcher: Dispatcher,
        settings: Settings,
        *,
        router: str,
        wake: Wakeup,
    ) -> None:
        self._jobs = jobs
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._settings = settings
        self._router = router
        self._wake = wake
        self._stopping = False

    def stop(self) -> None:
        """Claim nothing more and let ``run`` return; cancelling it could lose the answer of a claim."""
        self._stopping = True
        self._wake.ring()

    async def run(self) -> None:
        """Schedule whenever woken, at the latest every ``router.poll_s``, until stopped."""
        while not self._stopping:
            await self._wake.wait(self._settings.router.poll_s)
            try:
                await self._until_nothing_fits()
            except StoreUnavailable as error:
                logger.warning("scheduling waits for Redis: {}", error)
                self._wake.ring(_AWAY_S)

    async def _until_nothing_fits(self) -> None:
        heads, stale = FIRST_HEADS, 0
        # Jobs that were gone may have hidden others, so look once more; were that progress, a job that stays
        # gone would keep this loop busy for ever.
        while stale <= 1:
            found = await self._pass(heads)
            if found is _Drained.WAITS:
                return
            heads = MORE_HEADS
            stale = stale + 1 if found is _Drained.STALE else 0

    async def _pass(self, heads: int) -> _Drained:
        """Look at every queue once."""
        if self._stopping:
            return _Drained.WAITS
        view = await self._fleet.view(heads=heads)
        if not view.targets:
            return _Drained.WAITS
        keys = {entry.registration.name: entry.registration.api_key_env for entry in view.models}
        round_ = _Round(view, snapshot_of(view, self._settings), keys)
        # Several routers must not all go for the same queue first.
        targets = random.sample(view.targets, len(view.targets))
        return max([await self._drain(target, round_) for target in targets])

    def _may_take(self, head: Head, planned: int) -> bool:
        """Whether we may run one more beside what runs here and ``planned`` more."""
        if self._stopping:
            return False
        # What an api runs itself takes nothing of ours.
        return bool(_holder(head)) or self._dispatcher.running + planned < self._settings.router.max_in_flight

    async def _drain(self, target: TargetView, round_: _Round) -> _Drained:
        """Take jobs from one queue until its head has to wait or all that the view showed are through."""
        if any(head.fields.get("state") != JobState.QUEUED for head in target.heads):
            lost = await self._jobs.mend_queue(target.target)
            logger.warning("queue {} held jobs that exist no longer, dropped: {}", target.target, lost)
            return _Drained.STALE
        drained, left = _Drained.STALE, list(target.heads)
        while left:
            plans, verdict = self._plans(left, round_)
            if plans:
                placed, settled = await self._carry_out(plans, round_)
            elif verdict is not None:
                placed, settled = await self._turn_away(left[0], verdict, target, round_), 1
            else:
                return _Drained.WAITS
            if placed is _Drained.WAITS:
                return placed
            drained, left = max(drained, placed), left[settled:]
        return drained if target.waiting > len(target.heads) else _Drained.WAITS

    def _plans(self, heads: Sequence[Head], round_: _Round) -> tuple[list[_Plan], _Verdict | None]:
        """Claims for the first of these jobs, as many in a row as fit together; why the next one can't go."""
        plans: list[_Plan] = []
        snapshot = round_.snapshot
        for head in heads:
            ours = sum(1 for plan in plans if not _holder(plan.head))
            if not self._may_take(head, ours):
                break
            request = request_of(head, round_.view.now_ms)
            decision = decide(snapshot, request)
            model = decision.model
            if decision.action is not Action.DISPATCH or model is None:
                return plans, _Verdict(decision, request)
            order = self._order(head, decision, model, snapshot, request, round_)
            plans.append(_Plan(head, decision, model, order))
            snapshot = with_slot(snapshot, model)
        return plans, None

    async def _carry_out(self, plans: Sequence[_Plan], round_: _Round) -> tuple[_Drained, int]:
        """Claim them in one step; what came of it, and how many of the jobs are settled."""
        drained = _Drained.STALE
        for at, claimed in enumerate(await self._jobs.claim_all([plan.order for plan in plans])):
            plan = plans[at]
            if claimed.outcome is ClaimOutcome.CLAIMED:
                self._start(plan.head, claimed, plan.decision, plan.model, round_)
                drained = _Drained.MORE
            elif claimed.outcome in _ENDED_BY_CLAIM:
                drained = _Drained.MORE
            elif claimed.outcome is ClaimOutcome.AWAY:
                self._wake.ring(_AWAY_S)
                return _Drained.WAITS, at
            elif claimed.outcome is not ClaimOutcome.GONE:
                # Another router was faster, or a level moved: this picture of the model is out of date.
                round_.set_busy(plan.model)
                self._wake.ring(random.uniform(_COLLISION_S / 4, _COLLISION_S))
                return drained, at
        return drained, len(plans)

    async def _turn_away(self, head: Head, verdict: _Verdict, target: TargetView, round_: _Round) -> _Drained:
        if verdict.decision.action is Action.REJECT:
            return await self._reject(head, verdict.decision, verdict.request, round_)
        await self._hold(head, target, verdict.decision, verdict.request, round_)
        return _Drained.WAITS

    def _order(
        self,
        head: Head,
        decision: Decision,
        model: Model,
        snapshot: Snapshot,
        request: Request,
        round_: _Round,
    ) -> ClaimOrder:
        lease_s, grant = self._settings.router.lease_s, None
        if _holder(head):
            lease_s = min(lease_s, FIRST_LEASE_S)
            grant = {"tries": head.fields.get("tries", "0")}
            api_key_env = round_.api_key_envs.get(model.name)
            if api_key_env:
                grant["api_key_env"] = api_key_env
        nonce, lease_ms = secrets.token_hex(8), round(lease_s * 1000)
        return claim_order(
            head.job_id, nonce, self._router, lease_ms, decision, model, snapshot, request, grant
        )

    def _start(self, head: Head, claimed: Claimed, decision: Decision, model: Model, round_: _Round) -> None:
        round_.take_slot(model)
        logger.info(
            "decision job={} attempt={} model={} backend={} gpu={} reason={}",
            head.job_id,
            claimed.attempt,
            model.name,
            model.backend.value,
            ",".join(model.gpus) or "unknown",
            decision.reason,
        )
        if _holder(head):
            return
        self._dispatcher.start(
            Attempt(
                job_id=head.job_id,
                attempt=claimed.attempt,
                tries=int(head.fields.get("tries", "0")),
                model=model,
                api_key=api_key_of(round_.api_key_envs.get(model.name), os.environ),
                body=claimed.body,
                deadline_in_s=(claimed.deadline_ms - round_.view.now_ms) / 1000,
            )
        )

    async def _reject(self, head: Head, decision: Decision, request: Request, round_: _Round) -> _Drained:
        line = decision_line(self._router, decision, round_.snapshot, request)
        outcome = await self._jobs.reject(head.job_id, decision.code, decision.reason, line)
        if outcome is RejectOutcome.GONE:
            return _Drained.STALE
        logger.info("decision job={} reject {}: {}", head.job_id, decision.code, decision.reason)
        return _Drained.MORE

    async def _hold(
        self, head: Head, target: TargetView, decision: Decision, request: Request, round_: _Round
    ) -> None:
        if decision.retry_in_ms is not None:
            self._wake.ring(max(_RETRY_LEAST_S, decision.retry_in_ms / 1000))
        line = decision_line(self._router, decision, round_.snapshot, request)
        outcome = await self._jobs.hold(head.job_id, decision.code, decision.reason, line)
        if outcome == "HELD":
            logger.info(
                "decision target={} hold {} ({} waiting): {}",
                target.target,
                decision.code,
                target.waiting,
                decision.reason,
            )


def with_slot(snapshot: Snapshot, model: Model) -> Snapshot:
    """The same moment with one more request in flight on ``model``."""
    now = snapshot.models[model.name]
    gpus = dict(snapshot.gpus)
    for gpu in now.gpus:
        gpus[gpu] = replace(gpus[gpu], in_flight=gpus[gpu].in_flight + 1)
    models = {**snapshot.models, model.name: replace(now, in_flight=now.in_flight + 1)}
    return replace(snapshot, models=models, gpus=gpus)


@dataclass(frozen=True, slots=True)
class _Plan:
    """One job's decision, and the claim that carries it out."""

    head: Head
    decision: Decision
    model: Model
    order: ClaimOrder


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Why a job can't go now, or never."""

    decision: Decision
    request: Request


def _holder(head: Head) -> str:
    """The api on whose connection the client of an attached job waits, empty for a job of our own."""
    return head.fields.get("attached_to", "")


class _Round:
    """One pass's picture of the fleet, kept up to date with what the pass itself claims."""

    def __init__(self, view: View, snapshot: Snapshot, api_key_envs: Mapping[str, str | None]) -> None:
        self.view = view
        self.snapshot = snapshot
        self.api_key_envs = api_key_envs

    def take_slot(self, model: Model) -> None:
        self.snapshot = with_slot(self.snapshot, model)

    def set_busy(self, model: Model) -> None:
        self.snapshot = replace(self.snapshot, busy=self.snapshot.busy | {model.name})
