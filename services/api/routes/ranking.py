"""The call that ranks the models for a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.api import problems
from services.api.parameters import KNOWN_ONCE
from services.api.problems import UNKNOWN_AGENT_TYPE, UNKNOWN_MODEL, Problem
from services.api.ranking import ranking, request_for
from services.api.ranking_bodies import Ranking, RankingQuery
from services.api.state import state_of
from shared.decision.causes import Cause
from shared.states import Action
from shared.store.records import View

router = APIRouter(tags=["gpu"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))


@router.get(
    "/v1/gpu/models-optimal",
    response_class=Response,
    responses={200: {"model": Ranking}, **problems.responses(404, 422, 503)},
)
async def rank_models(request: Request, query: Annotated[RankingQuery, Query()]) -> Response:
    """Models by fit, latency and reliability for one request, exactly in the order of routing."""
    state = state_of(request)
    async with state.store():
        view = await state.fleet.view(heads=0)
    body = ranking(view, request_for(query, state.settings), state.settings)
    if body.decision.action is Action.REJECT:
        _refuse(body, view)
    return Response(body.model_dump_json(), media_type="application/json")


def _refuse(body: Ranking, view: View) -> None:
    """Raises ``Problem`` (404) for a name that nobody serves; other rejections are read as they are."""
    entries = [entry.registration for entry in view.models]
    match body.decision.code:
        case Cause.UNKNOWN_AGENT_TYPE:
            known = {agent_type for entry in entries for agent_type in entry.agent_types}
            raise Problem(UNKNOWN_AGENT_TYPE, body.decision.reason, field="agent_type", known=known)
        case Cause.UNKNOWN_MODEL:
            served = {name for entry in entries for name in entry.served_names}
            raise Problem(UNKNOWN_MODEL, body.decision.reason, field="model", known=served)
