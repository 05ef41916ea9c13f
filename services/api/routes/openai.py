"""The routes of the OpenAI-compatible surface, and what the OpenAPI document says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api.access import Access, access_of
from services.api.gateway.client import Client
from services.api.gateway.dialects import ANTHROPIC, ENDPOINTS, OPENAI, Dialect, Endpoint
from services.api.gateway.gateway import Gateway
from services.api.gateway.refusals import MODEL_NOT_FOUND, Refusal
from shared.states import Mode

OPENAI_ERROR = "OpenAIError"
ANTHROPIC_ERROR = "AnthropicError"
_JSON = [(b"content-type", b"application/json")]
_ERRORS = {
    400: "A field or a header is wrong; or the backend refused it (then with its own words and status)",
    404: "No such model or agent type",
    408: "The body came too slowly",
    413: "The body is too large",
    429: "The queue is full, or a limit of the API key is reached",
    431: "The headers are too large",
    502: "The backend answered what is no answer",
    503: "It could not be run; Retry-After says when to come again",
    504: "Its deadline passed",
}


class _Call:
    """One endpoint as a plain ASGI application: on this path nothing is spent on anything else."""

    def __init__(self, gateway: Gateway, endpoint: Endpoint) -> None:
        self._gateway = gateway
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gateway.answer(self._endpoint, scope, receive, send)


class _Models:
    """``GET /v1/models`` and, with an id in the path, one of them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(receive, send, OPENAI)
        try:
            body = await self._body(scope["path_params"].get("id"), access_of(scope))
        except Refusal as refusal:
            await client.refuse(refusal)
        else:
            await client.whole(200, body, _JSON)

    async def _body(self, model_id: str | None, access: Access | None) -> bytes:
        catalog = await self._gateway.catalog()
        allowed = None if access is None else access.models
        if not model_id:  # None, or the list with a slash at its end
            entries = [entry for entry in catalog.entries() if allowed is None or entry["id"] in allowed]
            return to_json({"object": "list", "data": entries})
        entry = catalog.entry(model_id) or (await self._gateway.refreshed_catalog()).entry(model_id)
        if entry is None or (allowed is not None and model_id not in allowed):
            raise Refusal(
                404, MODEL_NOT_FOUND, f"the model {model_id[:128]!r} is not known: GET /v1/models lists them"
            )
        return to_json(entry)


class _PrefixMissing:
    """For clients whose base URL lacks ``/v1``: OpenAI's own shows nothing of our other error answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        said = f"nothing is at {path}, but at /v1{path}: give your client a base URL that ends in /v1"
        await Client(receive, send, OPENAI).refuse(Refusal(404, "unknown_url", said))


def calls(gateway: Gateway) -> Mapping[str, ASGIApp]:
    """What answers a POST, by path."""
    return {endpoint.path: _Call(gateway, endpoint) for endpoint in ENDPOINTS}


def routes(gateway: Gateway) -> list[BaseRoute]:
    """Plain routes, to be matched before all others."""
    models = _Models(gateway)
    misled = ["/models", *(endpoint.path.removeprefix("/v1") for endpoint in ENDPOINTS)]
    return [
        *(Route(path, call, methods=["POST"]) for path, call in calls(gateway).items()),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{id:path}", models, methods=["GET"]),
        *(Route(path, _PrefixMissing()) for path in misled),
    ]


def describe(document: dict[str, Any]) -> None:
    """Add these calls to an OpenAPI document."""
    document["paths"] |= {endpoint.path: {"post": _operation(endpoint)} for endpoint in ENDPOINTS}
    document["paths"] |= _MODEL_PATHS
    document["components"]["schemas"] |= _SCHEMAS


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "application/json": {"schema": {"type": "object", "additionalProperties": True}}
    }
    if endpoint.streams:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "tags": ["openai"],
        "summary": endpoint.summary,
        "description": "Passed on as it is; `model` is a name that GET /v1/models lists, `auto` for any.",
        "operationId": "post" + endpoint.path.replace("/", "_"),
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _request(endpoint)}}},
        "responses": {
            "200": {"description": "The backend's answer", "content": answers},
            **_error_answers(endpoint.dialect, *_ERRORS),
            "4XX": {"description": "The backend's own refusal, in its own words"},
            "501": {"description": "The backend has no such call; in its own words"},
        },
    }


def _request(endpoint: Endpoint) -> dict[str, Any]:
    given: dict[str, Any] = (
        {"type": "array", "items": {"type": "object", "additionalProperties": True}, "minItems": 1}
        if endpoint.chat
        else {}
    )
    return {
        "type": "object",
        "required": ["model", endpoint.needs],
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": 128},
            endpoint.needs: given,
            "stream": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "additionalProperties": True,
    }


def _error_answers(dialect: Dialect, *statuses: int) -> dict[str, Any]:
    name = ANTHROPIC_ERROR if dialect is ANTHROPIC else OPENAI_ERROR
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in statuses}


def _header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_HEADERS = [
    _header("X-Agent-Type", "With model `auto`: what it must be good at", type="string"),
    _header("X-Priority", "9 is most urgent", type="integer", minimum=0, maximum=9),
    _header("X-Mode", "What the answer is tuned for", type="string", enum=list(Mode)),
    _header("X-Deadline-S", "Seconds after which nobody wants it any more", type="number"),
]
_TEXT = {"type": "string"}
_ENTRY = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": _TEXT, "object": _TEXT, "created": {"type": "integer"}, "owned_by": _TEXT},
}
_OPTIONAL_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_SCHEMAS: dict[str, Any] = {
    OPENAI_ERROR: {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": _OPTIONAL_TEXT,
                    "code": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
                },
            }
        },
    },
    ANTHROPIC_ERROR: {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": _TEXT,
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": _TEXT, "message": _TEXT},
            },
        },
    },
    "OpenAIModel": _ENTRY,
    "OpenAIModelList": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": _TEXT,
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/OpenAIModel"}},
        },
    },
}


def _model_call(summary: str, schema: str, *errors: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        "tags": ["openai"],
        "summary": summary,
        "operationId": f"get_{schema}",
        "responses": {
            "200": {"description": summary, "content": content},
            **_error_answers(OPENAI, *errors),
        },
    }


_MODEL_PATHS: dict[str, Any] = {
    "/v1/models": {"get": _model_call("The names that `model` may have", "OpenAIModelList", 503)},
    "/v1/models/{id}": {
        "get": {
            **_model_call("One of these names", "OpenAIModel", 404, 503),
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": _TEXT}],
        }
    },
}
