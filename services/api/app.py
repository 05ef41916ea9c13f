"""The app: routes, error answers and the OpenAPI document, around a given state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api import problems
from services.api.request_id import answer_with_id
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

    bare_shortcut: Mapping[str, ASGIApp] = {}
    """The same for calls without a query string: query parameters are FastAPI's to read and to refuse."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        await answer_with_id(self._past_fastapi(scope) or super().__call__, scope, receive, send)

    def _past_fastapi(self, scope: Scope) -> ASGIApp | None:
        if scope["method"] != "POST":
            return None
        path = scope["path"]
        return self.shortcut.get(path) or (None if scope["query_string"] else self.bare_shortcut.get(path))

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
    app.shortcut = _behind_rim(openai.calls(state.gateway), state)
    app.bare_shortcut = _behind_rim(jobs.calls(state), state)
    app.router.routes[:0] = openai.routes(state.gateway)
    for routes in (jobs, gpu, forecast, ranking, history, rebalance, benchmark, models, health):
        app.include_router(routes.router)
    return app


def _behind_rim(calls: Mapping[str, ASGIApp], state: ApiState) -> Mapping[str, ASGIApp]:
    return {path: Rim(call, state.keyring, state.settings.api) for path, call in calls.items()}


def _drop_unused_errors(document: dict[str, Any]) -> None:
    """FastAPI declares its own 422 for every path with a parameter; ours are declared where they can come."""
    for calls in document["paths"].values():
        for call in calls.values():
            if "HTTPValidationError" in str(call["responses"].get("422")):
                del call["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
