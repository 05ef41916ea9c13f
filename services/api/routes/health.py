"""Whether the process lives, whether the whole is ready, and where to go from the front door."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from services.api import problems
from services.api.parameters import KNOWN_ONCE
from services.api.representations import Body
from services.api.state import ApiState, state_of
from services.api.status import is_alive
from shared.errors import StoreUnavailable
from shared.presence import package_version
from shared.store.records import ServiceRecord, View

router = APIRouter(tags=["health"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))


class Health(Body):
    status: str
    version: str


class Readiness(Body):
    status: str = Field(description="ready or not ready")
    missing: list[str] = Field(description="What must be there before requests can be served")


class Welcome(Body):
    name: str
    version: str
    docs: str
    openapi: str
    calls: dict[str, str]


_CALLS = {
    "POST /v1/jobs": "submit a job; ?wait=SECONDS answers with its result",
    "GET /v1/jobs/{id}": "its state, decision, timings and result",
    "GET /v1/jobs/{id}/events": "its transitions as server-sent events",
    "DELETE /v1/jobs/{id}": "cancel it",
    "GET /v1/jobs": "the newest jobs",
    "GET /v1/gpu/status": "GPUs, models, queue and services",
    "GET /v1/gpu/memory-forecast": "memory and requests some hours ahead; ?hours=0.25 to 24",
    "GET /v1/gpu/models-optimal": "models in the order of routing; ?agent_type=Chat",
    "GET /v1/gpu/history": "the last samples; ?limit=100",
    "POST /v1/gpu/rebalance": "what to load and unload; GET is a preview",
    "POST /v1/gpu/benchmark-model": "measure a model; ?model_name=NAME&duration_s=30",
    "GET /v1/gpu/models": "the registry; POST there, PUT and DELETE at /v1/gpu/models/{name}",
    "GET /readyz": "whether everything is up",
}


@router.get("/", response_class=Response, responses={200: {"model": Welcome}})
async def welcome() -> Response:
    """Where to go from here."""
    body = Welcome(
        name="gpu-orchestrator",
        version=package_version(),
        docs="/docs",
        openapi="/openapi.json",
        calls=_CALLS,
    )
    return _json(body)


@router.get("/healthz", response_class=Response, responses={200: {"model": Health}})
async def healthz() -> Response:
    """This process lives."""
    return _json(Health(status="ok", version=package_version()))


@router.get(
    "/readyz",
    response_class=Response,
    responses={200: {"model": Readiness}, 503: {"model": Readiness, "description": "Something is missing"}},
)
async def readyz(request: Request) -> Response:
    """Redis answers, a router lives, and a first sample has come."""
    missing = await _missing(state_of(request))
    if missing:
        return _json(Readiness(status="not ready", missing=missing), 503)
    return _json(Readiness(status="ready", missing=[]))


async def _missing(state: ApiState) -> list[str]:
    try:
        async with state.store():
            services = await state.fleet.services()
            view = await state.fleet.view(heads=0)
    except StoreUnavailable as error:
        return [f"redis: {error}"]
    missing = []
    if not _alive(services, "router"):
        missing.append("router: no live heartbeat of one in the last 10 s")
    if not _sampled(state, services, view):
        missing.append("gpu sample: no monitor has published one yet")
    return missing


def _sampled(state: ApiState, services: tuple[ServiceRecord, ...], view: View) -> bool:
    settings = state.settings
    if settings.gpu.source == "none" or any(gpu.sample for gpu in view.gpus):
        return True
    # Without a driver ``auto`` comes to none, and then only the monitor's probes show that it is at work.
    may_be_none = settings.gpu.source == "auto" and not settings.simulates
    return (
        may_be_none
        and _alive(services, "monitor")
        and any("probe_ms" in model.fields for model in view.models)
    )


def _alive(services: tuple[ServiceRecord, ...], service: str) -> bool:
    return any(record.service == service and is_alive(record) for record in services)


def _json(body: Body, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")
