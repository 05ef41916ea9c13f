"""The app: routes, error answers and the OpenAPI document, around a given state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api import problems
from services.api.routes import (
    benchmark,
    forecast,
    gpu,
    health,
    history,
    jobs,
    models,
    openai,
    ranking,
    rebalance,
)
from services.api.security import Rim
from services.api.security_document import describe
from services.api.state import ApiState
from shared.jobs import JobRequest
from shared.presence import package_version

_DESCRIPTION = (
    "Jobs for local LLMs, routed by measured GPU memory, heat and load. "
    "Errors are problem objects (RFC 9457); those of the OpenAI-compatible calls are OpenAI's."
)
_REF = "#/components/schemas/{model}"


class _App(FastAPI):
    shortcut: Mapping[str, ASGIApp] = {}
    """Calls by path whose POST goes past FastAPI: its layers would cost a tenth of what such a call costs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self.shortcut.get(scope["path"]) if scope["type"] == "http" else None
        if call is not None and scope["method"] == "POST":
            await call(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, with the two shapes that the routes read and write by themselves."""
        if self.openapi_schema is None:
            found = super().openapi()
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for name, model in ((problems.SCHEMA, problems.ProblemBody), ("JobRequest", JobRequest)):
                schema = model.model_json_schema(ref_template=_REF)
                schemas |= schema.pop("$defs", {})
                schemas[name] = schema
            _drop_unused_errors(found)
            openai.describe(found)
            describe(found)
        return super().openapi()


def create_app(state: ApiState) -> FastAPI:
    """The ASGI application; it opens and closes nothing."""
    app = _App(
        title="GPU orchestrator",
        version=package_version(),
        description=_DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.api = state
    problems.install(app)
    app.add_middleware(Rim, keyring=state.keyring, settings=state.settings.api)
    app.shortcut = {
        path: Rim(call, state.keyring, state.settings.api)
        for path, call in openai.calls(state.gateway).items()
    }
    app.router.routes[:0] = openai.routes(state.gateway)
    for routes in (jobs, gpu, forecast, ranking, history, rebalance, benchmark, models, health):
        app.include_router(routes.router)
    return app


def _drop_unused_errors(document: dict[str, Any]) -> None:
    """FastAPI declares its own 422 for every path with a parameter; ours are declared where they can come."""
    for calls in document["paths"].values():
        for call in calls.values():
            if "HTTPValidationError" in str(call["responses"].get("422")):
                del call["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
