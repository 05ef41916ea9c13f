"""The call that tells memory and requests some hours ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from services.api import problems
from services.api.forecast import memory_forecast
from services.api.forecast_bodies import MemoryForecast
from services.api.gpu_names import gpus_named, place
from services.api.parameters import KNOWN_ONCE, Parameters, Within
from services.api.state import state_of
from shared.decision.forecast import DEFAULT_HOURS, LEAST_HOURS, MOST_HOURS
from shared.store.records import GpuView

router = APIRouter(tags=["gpu"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))


class ForecastParameters(Parameters):
    hours: Annotated[float, Within(LEAST_HOURS, MOST_HOURS, "hours")] = Field(
        default=DEFAULT_HOURS, description="How far ahead"
    )
    gpu: str | None = Field(default=None, description="Only this GPU, `host/index`, or its index")


@router.get(
    "/v1/gpu/memory-forecast",
    response_class=Response,
    responses={200: {"model": MemoryForecast}, **problems.responses(404, 422, 503)},
)
async def read_forecast(request: Request, query: Annotated[ForecastParameters, Query()]) -> Response:
    """Memory of the GPUs now and so many hours ahead, with how good such forecasts have been."""
    state = state_of(request)
    async with state.store():
        view = await state.fleet.view(heads=0)
        shown = _chosen(view.gpus, query.gpu)
        history = await state.fleet.history(
            gpus=[one.id for one in shown], models=[model.registration.name for model in view.models]
        )
    # Eight days of minutes are tens of ms of work: in a thread, so that other calls are served meanwhile.
    body = await asyncio.to_thread(memory_forecast, view, shown, history, query.hours, state.settings)
    return Response(body.model_dump_json(), media_type="application/json")


def _chosen(gpus: Sequence[GpuView], name: str | None) -> list[GpuView]:
    """The GPU of this name, or all in order; raises ``Problem`` (404) for one that was never sampled."""
    if name is None:
        return sorted(gpus, key=lambda gpu: place(gpu.id))
    meant = gpus_named(name, (gpu.id for gpu in gpus))
    return sorted((gpu for gpu in gpus if gpu.id in meant), key=lambda gpu: place(gpu.id))
