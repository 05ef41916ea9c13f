"""The calls that recommend loads and unloads."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from services.api import problems
from services.api.parameters import KNOWN_ONCE, Parameters
from services.api.problems import NO_LAUNCHER, Problem
from services.api.rebalance_bodies import Rebalance, RebalanceAction
from services.api.state import ApiState, state_of
from services.api.status import gpu_statuses, nothing_sampled
from shared.decision.advice import advise
from shared.decision.snapshot import Advice
from shared.snapshots import snapshot_of

router = APIRouter(tags=["gpu"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))

_HEADS = 8
"""Jobs of each queue that are looked at: the first to go are about the oldest."""
_REQUESTED = "rebalance.requested"


class RebalanceQuery(Parameters):
    execute: bool = Field(default=False, description="Carry it out: needs a launcher")


@router.get(
    "/v1/gpu/rebalance",
    response_class=Response,
    responses={200: {"model": Rebalance}, **problems.responses(503)},
)
async def preview_rebalance(request: Request) -> Response:
    """What would be recommended now; changes nothing and leaves no trace."""
    return _json(await _advised(state_of(request)))


@router.post(
    "/v1/gpu/rebalance",
    response_class=Response,
    responses={200: {"model": Rebalance}, **problems.responses(409, 422, 503)},
)
async def rebalance(request: Request, query: Annotated[RebalanceQuery, Query()]) -> Response:
    """Recommend actions on the state as it is, and leave the request with them in `orch:control`."""
    state = state_of(request)
    if query.execute:
        raise Problem(
            NO_LAUNCHER,
            "execute: no launcher is running that could load or unload anything, so nothing was done; leave "
            "execute out for the recommendation, and carry it out by hand",
            field="execute",
        )
    found = await _advised(state)
    actions = [action.model_dump(mode="json", exclude_none=True) for action in found.actions]
    async with state.store():
        entry = await state.control.announce(
            _REQUESTED,
            {
                "reason": "; ".join(action.reason for action in found.actions),
                "actions": json.dumps(actions, ensure_ascii=False),
                "execute": "0",
            },
        )
    return _json(found.model_copy(update={"id": entry, "state": "recommended"}))


async def _advised(state: ApiState) -> Rebalance:
    async with state.store():
        view = await state.fleet.view(heads=_HEADS)
    gpus = gpu_statuses(view, state.settings)
    notes = [f"GPU {gpu.gpu}: {gpu.detail}" for gpu in gpus if gpu.detail is not None]
    return Rebalance(
        id=None,
        state="preview",
        actions=[_action(advice) for advice in advise(snapshot_of(view, state.settings))],
        notes=notes if gpus else [nothing_sampled(state.settings)],
        gpus=gpus,
    )


def _action(advice: Advice) -> RebalanceAction:
    use = advice.utilization
    return RebalanceAction(
        action=str(advice.action),
        code=str(advice.code),
        reason=advice.reason,
        changes=advice.changes,
        model=advice.model,
        gpu=advice.gpu,
        to_gpu=advice.to_gpu,
        unloads=list(advice.victims),
        frees_mb=_rounded(advice.frees_mb),
        needs_mb=_rounded(advice.needs_mb),
        gain_s=_rounded(advice.gain),
        load_s=_rounded(advice.load_seconds),
        utilization_percent=None if use is None else _rounded(100 * use),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _json(body: Rebalance) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")
