"""The calls about GPUs and models."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from services.api import problems
from services.api.parameters import KNOWN_ONCE
from services.api.state import state_of
from services.api.status import fleet_status
from services.api.status_bodies import FleetStatus

router = APIRouter(tags=["gpu"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))


@router.get(
    "/v1/gpu/status",
    response_class=Response,
    responses={200: {"model": FleetStatus}, **problems.responses(503)},
)
async def read_status(request: Request) -> Response:
    """Memory, heat and load of the GPUs, the models on them, the queue and the services."""
    state = state_of(request)
    async with state.store():
        view = await state.fleet.view(heads=1)
        counts = await state.jobs.counts()
        services = await state.fleet.services()
    status = fleet_status(view, counts, services, state.settings)
    return Response(status.model_dump_json(), media_type="application/json")
