"""The registry: models into and out of service while everything runs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from loguru import logger

from services.api import problems
from services.api.model_bodies import NAME_SCHEMA, ModelDetail, ModelList, registration_schema
from services.api.models import model_details, parse_registration
from services.api.parameters import KNOWN_ONCE
from services.api.problems import MODEL_EXISTS, MODEL_OF_FILE, UNKNOWN_MODEL, Problem
from services.api.representations import location
from services.api.requests import read_body
from services.api.state import ApiState, state_of
from shared.registry import Registration
from shared.store.control import PutOutcome, RemoveOutcome

router = APIRouter(tags=["models"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))

_NAME_SHOWN = 128
_HERE = location("The model")


def _body(*required: str) -> dict[str, Any]:
    schema = registration_schema(*required)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.get(
    "/v1/gpu/models",
    response_class=Response,
    responses={200: {"model": ModelList}, **problems.responses(503)},
)
async def list_models(request: Request) -> Response:
    """Every registered model: registration, residence, load and what was measured."""
    state = state_of(request)
    found = await _details(state)
    return _json(ModelList(models=[found[name] for name in sorted(found)]))


@router.post(
    "/v1/gpu/models",
    status_code=201,
    response_class=Response,
    openapi_extra=_body("name"),
    responses={
        201: {"model": ModelDetail, "description": "Registered", "headers": _HERE},
        **problems.responses(400, 409, 413, 422, 503),
    },
)
async def create_model(request: Request) -> Response:
    """Register a model that is not registered yet."""
    state = state_of(request)
    entry = parse_registration(await read_body(request, state.settings.api.max_body_bytes), None)
    return await _put(state, entry, replace=False)


@router.get(
    "/v1/gpu/models/{name:path}",
    response_class=Response,
    responses={200: {"model": ModelDetail}, **problems.responses(404, 503)},
)
async def read_model(request: Request, name: str) -> Response:
    """One registered model."""
    return _json(await _detail(state_of(request), name))


@router.put(
    "/v1/gpu/models/{name:path}",
    response_class=Response,
    openapi_extra=_body(),  # the path names it, so that the body need not
    responses={
        200: {"model": ModelDetail, "description": "Replaced, or the same as before", "headers": _HERE},
        201: {"model": ModelDetail, "description": "Registered", "headers": _HERE},
        # 404: a path with a line break in it leads nowhere.
        **problems.responses(400, 404, 409, 413, 422, 503),
    },
)
async def put_model(request: Request, name: Annotated[str, Path(json_schema_extra=NAME_SCHEMA)]) -> Response:
    """Register a model, or replace its registration; what was learned stays if its server is the same."""
    state = state_of(request)
    entry = parse_registration(await read_body(request, state.settings.api.max_body_bytes), name)
    return await _put(state, entry, replace=True)


@router.delete(
    "/v1/gpu/models/{name:path}",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "Nothing new is sent to it; its jobs in flight end as they will"},
               **problems.responses(404, 409, 503)},
)  # fmt: skip
async def delete_model(request: Request, name: str) -> Response:
    """Take a model out of the registry; its server is left alone."""
    state = state_of(request)
    async with state.store():
        outcome = await state.control.remove_model(name)
        await state.registry.refresh()
    if outcome is RemoveOutcome.UNKNOWN:
        raise await _unknown(state, name)
    if outcome is RemoveOutcome.FILE:
        raise _of_file(state, name)
    logger.info("model {} is removed over HTTP", name)
    return Response(status_code=204)


async def _put(state: ApiState, entry: Registration, *, replace: bool) -> Response:
    async with state.store():
        outcome = await state.control.put_model(entry, replace=replace)
        # So that a job which names it is known here at once.
        await state.registry.refresh()
    if outcome is PutOutcome.FILE:
        raise _of_file(state, entry.name)
    if outcome is PutOutcome.EXISTS:
        raise Problem(
            MODEL_EXISTS, f"{entry.name} is registered already: PUT /v1/gpu/models/{entry.name} replaces it"
        )
    logger.info("model {} over HTTP: {}", entry.name, outcome)
    status = 201 if outcome is PutOutcome.CREATED else 200
    body = await _detail(state, entry.name)
    return _json(body, status, Location=f"/v1/gpu/models/{entry.name}")


async def _details(state: ApiState) -> dict[str, ModelDetail]:
    async with state.store():
        return model_details(await state.fleet.view(heads=1), state.settings)


async def _detail(state: ApiState, name: str) -> ModelDetail:
    found = (await _details(state)).get(name)
    if found is None:
        raise await _unknown(state, name)
    return found


async def _unknown(state: ApiState, name: str) -> Problem:
    async with state.store():
        known = [entry.name for entry in await state.fleet.registrations()]
    listed = ", ".join(sorted(known)) or "none yet"
    return Problem(
        UNKNOWN_MODEL, f"no model {name[:_NAME_SHOWN]!r} is registered; known: {listed}", known=known
    )


def _of_file(state: ApiState, name: str) -> Problem:
    where = state.config_file or "no file at all: these are the models that are built in"
    return Problem(
        MODEL_OF_FILE,
        f"{name} comes from the configuration (of this api: {where}), which wins: change it there, or "
        "register another name",
    )


def _json(body: ModelDetail | ModelList, status: int = 200, **headers: str) -> Response:
    return Response(body.model_dump_json(), status, headers=headers, media_type="application/json")
