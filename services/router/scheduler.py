"""The scheduler: look at the head of every queue, ask the core, carry out what it says through the store."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import replace

from loguru import logger

from services.router.attempts import Attempt
from services.router.dispatcher import Dispatcher
from services.router.rounds import Drained, Plan, Round, Verdict, holder_of
from services.router.wakeup import Wakeup
from shared.canonical import log_decision
from shared.config import Settings
from shared.decision.routing import decide
from shared.decision.slots import with_slot
from shared.decision.snapshot import Decision, Model, Request, Snapshot
from shared.errors import StoreUnavailable
from shared.placement.orders import FIRST_LEASE_S, claim_order, decision_line, grant_of
from shared.placement.picture import Pictures
from shared.snapshots import request_of, snapshot_of
from shared.states import Action, JobState
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.records import Claimed, ClaimOrder, ClaimOutcome, Head, RejectOutcome, TargetView

FIRST_HEADS = 2
"""Jobs read of each queue at a wake-up, which mostly frees one slot: one to take it, one to be held."""
MORE_HEADS = 8
"""Jobs read of each queue while more fit. Reading 8 of 60 queues takes twice as long as all the rest."""
_ENDED_BY_CLAIM = frozenset({ClaimOutcome.EXPIRED, ClaimOutcome.ABANDONED})
_AWAY_S = 0.25
_COLLISION_S = 0.02
_RETRY_LEAST_S = 0.02


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
        self.pictures = Pictures(fleet, settings)
        self._newcomers: list[Head] = []
        self._was_full = False

    def offer(self, heads: Sequence[Head]) -> None:
        """These have just been accepted: where nobody else waits, they need no look at the queues."""
        self._newcomers += heads
        self._wake.ring()

    def left(self, attempt: Attempt) -> None:
        """An attempt of this router is over."""
        self.pictures.left(attempt.grant.model)
        if self._was_full or not attempt.nobody_waits:
            self._was_full = False
            self._wake.ring()

    def stop(self) -> None:
        """Claim nothing more and let ``run`` return; cancelling it could lose the answer of a claim."""
        self._stopping = True
        self._wake.ring()

    async def run(self) -> None:
        """Schedule whenever woken, at the latest every ``router.poll_s``, until stopped."""
        while not self._stopping:
            await self._wake.wait(self._settings.router.poll_s)
            newcomers, self._newcomers = self._newcomers, []
            try:
                if not await self._take(newcomers):
                    await self._until_nothing_fits()
            except StoreUnavailable as error:
                logger.warning("scheduling waits for Redis: {}", error)
                self._wake.ring(_AWAY_S)

    async def _take(self, newcomers: Sequence[Head]) -> bool:
        """Claim a newcomer, provided that nobody else waits; whether that was all there was to do.

        Of several at once the queues say which goes first.
        """
        if len(newcomers) != 1 or self._stopping or self.pictures.rest:
            return False
        picture = await self.pictures.fresh()
        round_ = Round(picture.view_now, picture.snapshot)
        plans, _ = self._plans(newcomers, round_)
        if not plans:
            return False
        order = replace(plans[0].order, alone=newcomers[0].fields["queued_event"])
        drained, _ = await self._carry_out([replace(plans[0], order=order)], round_)
        if drained is not Drained.MORE:
            self.pictures.refused()
        return drained is Drained.MORE

    async def _until_nothing_fits(self) -> None:
        heads, stale = FIRST_HEADS, 0
        # Jobs that were gone may have hidden others, so look once more; were that progress, a job that stays
        # gone would keep this loop busy for ever.
        while stale <= 1:
            found = await self._pass(heads)
            if found is Drained.WAITS:
                return
            heads = MORE_HEADS
            stale = stale + 1 if found is Drained.STALE else 0

    async def _pass(self, heads: int) -> Drained:
        """Look at every queue once."""
        if self._stopping:
            return Drained.WAITS
        view = await self._fleet.view(heads=heads)
        if not view.targets:
            return Drained.WAITS
        round_ = Round(view, snapshot_of(view, self._settings))
        # Several routers must not all go for the same queue first.
        targets = random.sample(view.targets, len(view.targets))
        return max([await self._drain(target, round_) for target in targets])

    def _may_take(self, head: Head, planned: int) -> bool:
        """Whether we may run one more beside what runs here and ``planned`` more."""
        if self._stopping:
            return False
        # What an api runs itself takes nothing of ours.
        if holder_of(head) or self._dispatcher.running + planned < self._settings.router.max_in_flight:
            return True
        self._was_full = True  # whoever leaves has to wake us, also if nobody waited when it ended
        return False

    async def _drain(self, target: TargetView, round_: Round) -> Drained:
        """Take jobs from one queue until its head has to wait or all that the view showed are through."""
        if any(head.fields.get("state") != JobState.QUEUED for head in target.heads):
            lost = await self._jobs.mend_queue(target.target)
            logger.warning("queue {} held jobs that exist no longer, dropped: {}", target.target, lost)
            return Drained.STALE
        drained, left = Drained.STALE, list(target.heads)
        while left:
            plans, verdict = self._plans(left, round_)
            if plans:
                placed, settled = await self._carry_out(plans, round_)
            elif verdict is not None:
                placed, settled = await self._turn_away(left[0], verdict, target, round_), 1
            else:
                return Drained.WAITS
            if placed is Drained.WAITS:
                return placed
            drained, left = max(drained, placed), left[settled:]
        return drained if target.waiting > len(target.heads) else Drained.WAITS

    def _plans(self, heads: Sequence[Head], round_: Round) -> tuple[list[Plan], Verdict | None]:
        """Claims for the first of these jobs, as many in a row as fit together; why the next one can't go."""
        plans: list[Plan] = []
        snapshot = round_.snapshot
        for head in heads:
            ours = sum(1 for plan in plans if not holder_of(plan.head))
            if not self._may_take(head, ours):
                break
            request = request_of(head, round_.view.now_ms)
            decision = decide(snapshot, request)
            model = decision.model
            if decision.action is not Action.DISPATCH or model is None:
                return plans, Verdict(decision, request)
            order = self._order(head, decision, model, snapshot, request, round_)
            plans.append(Plan(head, decision, model, order))
            snapshot = with_slot(snapshot, model.name)
        return plans, None

    async def _carry_out(self, plans: Sequence[Plan], round_: Round) -> tuple[Drained, int]:
        """Claim them in one step; what came of it, and how many of the jobs are settled."""
        drained = Drained.STALE
        for at, claimed in enumerate(await self._jobs.claim_all([plan.order for plan in plans])):
            plan = plans[at]
            if claimed.outcome is ClaimOutcome.CLAIMED:
                self._start(plan.head, claimed, plan.decision, plan.model, round_)
                drained = Drained.MORE
            elif claimed.outcome in _ENDED_BY_CLAIM:
                drained = Drained.MORE
            elif claimed.outcome is ClaimOutcome.AWAY:
                self._wake.ring(_AWAY_S)
                return Drained.WAITS, at
            elif claimed.outcome is not ClaimOutcome.GONE:
                # Another router was faster, or a level moved: this picture of the model is out of date.
                round_.set_busy(plan.model)
                self._wake.ring(random.uniform(_COLLISION_S / 4, _COLLISION_S))
                return drained, at
        return drained, len(plans)

    async def _turn_away(self, head: Head, verdict: Verdict, target: TargetView, round_: Round) -> Drained:
        if verdict.decision.action is Action.REJECT:
            return await self._reject(head, verdict.decision, verdict.request, round_)
        await self._hold(head, target, verdict.decision, verdict.request, round_)
        return Drained.WAITS

    def _order(
        self,
        head: Head,
        decision: Decision,
        model: Model,
        snapshot: Snapshot,
        request: Request,
        round_: Round,
    ) -> ClaimOrder:
        lease_s, grant = self._settings.router.lease_s, None
        if holder_of(head):
            lease_s = min(lease_s, FIRST_LEASE_S)
            grant = {"tries": head.fields.get("tries", "0")}
            api_key_env = round_.api_key_env(model)
            if api_key_env:
                grant["api_key_env"] = api_key_env
        nonce, lease_ms = secrets.token_hex(8), round(lease_s * 1000)
        return claim_order(
            head.job_id,
            nonce,
            self._router,
            lease_ms,
            decision,
            model,
            snapshot,
            request,
            registration=round_.models[model.name].stored,
            grant=grant,
        )

    def _start(self, head: Head, claimed: Claimed, decision: Decision, model: Model, round_: Round) -> None:
        round_.take_slot(model)
        request_id = head.fields.get("request_id", "")
        log_decision(decision, head.job_id, request_id, attempt=claimed.attempt)
        if holder_of(head):
            return
        self.pictures.took(model.name)
        self._dispatcher.start(
            Attempt(
                grant_of(
                    decision,
                    model,
                    job_id=head.job_id,
                    attempt=claimed.attempt,
                    tries=int(head.fields.get("tries", "0")),
                    api_key_env=round_.api_key_env(model),
                    now_ms=round_.view.now_ms,
                ),
                claimed.body,
                (claimed.deadline_ms - round_.view.now_ms) / 1000,
                request_id=request_id,
                queue_ms=_queue_ms(head, round_.view.now_ms),
            )
        )

    async def _reject(self, head: Head, decision: Decision, request: Request, round_: Round) -> Drained:
        line = decision_line(self._router, decision, round_.snapshot, request)
        outcome = await self._jobs.reject(head.job_id, decision.code, decision.reason, line)
        if outcome is RejectOutcome.GONE:
            return Drained.STALE
        log_decision(decision, head.job_id, head.fields.get("request_id"))
        return Drained.MORE

    async def _hold(
        self, head: Head, target: TargetView, decision: Decision, request: Request, round_: Round
    ) -> None:
        if decision.retry_in_ms is not None:
            self._wake.ring(max(_RETRY_LEAST_S, decision.retry_in_ms / 1000))
        line = decision_line(self._router, decision, round_.snapshot, request)
        outcome = await self._jobs.hold(head.job_id, decision.code, decision.reason, line)
        if outcome == "HELD":
            request_id, waiting = head.fields.get("request_id"), target.waiting
            log_decision(decision, head.job_id, request_id, target=target.target, waiting=waiting)


def _queue_ms(head: Head, now_ms: int) -> float | None:
    """How long this job has waited at ``now_ms`` of Redis' clock."""
    submitted = head.fields.get("submitted_ms", "")
    return float(max(0, now_ms - int(submitted))) if submitted.isdecimal() else None
