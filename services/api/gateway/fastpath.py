"""Deciding here for a request that nobody waits in front of: one call to Redis starts its job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from shared.config import Settings
from shared.decision.routing import decide
from shared.decision.snapshot import Decision, Model
from shared.placement.orders import FIRST_LEASE_S, claim_order, grant_of
from shared.placement.picture import Pictures
from shared.registry import Registration
from shared.snapshots import request_of
from shared.states import Action
from shared.store.fleet import FleetStore
from shared.store.grants import Grant
from shared.store.jobs import JobStore
from shared.store.records import ClaimOrder, Head, NewJob, SubmitOutcome, Submitted

FIRST_ATTEMPT = 1


@dataclass(frozen=True, slots=True)
class Start:
    """A decision, the order that carries it out, and what its request is granted if Redis agrees."""

    order: ClaimOrder
    decision: Decision
    model: Model
    api_key_env: str | None
    spare: bool
    """Whether at most half of the slots of the model, and of its GPUs, are taken with this one."""

    def grant(self, now_ms: int) -> Grant:
        """What the routers would have told; ``now_ms``: Redis' time when it was started."""
        return grant_of(
            self.decision,
            self.model,
            job_id=self.order.job_id,
            attempt=FIRST_ATTEMPT,
            tries=0,
            api_key_env=self.api_key_env,
            now_ms=now_ms,
        )


class FastPath:
    """Decides as a router would (docs/adr/0017). ``decider`` says what decisions name as their ``router``."""

    def __init__(
        self, jobs: JobStore, fleet: FleetStore, settings: Settings, decider: Callable[[], str]
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._decider = decider
        self._lease_ms = round(min(settings.router.lease_s, FIRST_LEASE_S) * 1000)
        self.pictures = Pictures(fleet, settings)

    async def submit(
        self, job: NewJob, *, bound: int, idempotency: str | None = None, digest: str = ""
    ) -> tuple[Submitted, Start | None]:
        """Accept a job as ``JobStore.submit`` does; its start, where it was started at once.

        An attached job is then ours to run, and to count; any other a router's. Raises ``StoreUnavailable``.
        """
        start = await self._decide(job)
        submit = partial(self._jobs.submit, job, bound=bound, idempotency=idempotency, digest=digest)
        if start is None:
            return await submit(), None
        submitted = await self._counted(start, job, partial(submit, start=start.order))
        if submitted.outcome is SubmitOutcome.STARTED:
            return submitted, start
        if submitted.outcome is SubmitOutcome.ACCEPTED:
            self.pictures.refused()
        return submitted, None

    async def _counted(
        self, start: Start, job: NewJob, submit: Callable[[], Awaitable[Submitted]]
    ) -> Submitted:
        """While it is under way it counts in the decisions on others.

        One that a router runs does so until the next picture, which shows it: nobody tells us of its end. But
        not where there was no choice: how many a model may have at once Redis sees to.
        """
        if job.attached_to is None and len(start.decision.parts) <= 1:
            return await submit()
        picture, stays = self.pictures.took(start.model.name), False
        try:
            submitted = await submit()
            stays = submitted.outcome is SubmitOutcome.STARTED and job.attached_to is None
        finally:
            if picture is not None and not stays:
                picture.count(start.model.name, -1)
        return submitted

    async def _decide(self, job: NewJob) -> Start | None:
        if not self._settings.api.fast_path or self.pictures.rest:
            return None
        picture = await self.pictures.fresh()
        now_ms = picture.view.now_ms
        head = Head(job.id, {**job.fields, "deadline_ms": str(now_ms + job.deadline_in_ms)})
        request = request_of(head, now_ms)
        snapshot = picture.snapshot
        decision = decide(snapshot, request)
        model = decision.model
        if decision.action is not Action.DISPATCH or model is None:
            return None
        entry = picture.models[model.name]
        order = claim_order(
            job.id,
            job.id,  # as the nonce: this job is started here once, or never
            self._decider(),
            self._lease_ms,
            decision,
            model,
            snapshot,
            request,
            registration=entry.stored,
            grant=None if job.attached_to is not None else _handed(entry.registration),
        )
        spare = _has_room(decision.parts[model.name].busy, decision.limit) and all(
            _has_room(snapshot.gpus[gpu].in_flight if gpu in snapshot.gpus else 0, limit)
            for gpu, limit in decision.gpu_limits.items()
        )
        return Start(order, decision, model, entry.registration.api_key_env, spare)


def _has_room(busy: int, limit: int) -> bool:
    return 2 * (busy + 1) <= limit


def _handed(registration: Registration) -> dict[str, str]:
    """What a router needs to run a job besides the decision."""
    key = registration.api_key_env
    return {"tries": "0", **({"api_key_env": key} if key else {})}
