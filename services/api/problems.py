"""Every error answer of the api: RFC 9457 problem objects, and the one handler that makes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from loguru import logger
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from shared.errors import InvalidRequest, StoreUnavailable

MEDIA_TYPE = "application/problem+json"
SCHEMA = "Problem"
_RETRY_AFTER_S = 2
"""A killed Redis is usually back in a second or two; a client that comes back later loses nothing."""
_PASSING = frozenset({429, 503})
"""Statuses of what passes: their answers say when to try again."""
_RETRY_AFTER: dict[str, Any] = {
    "description": "Seconds after which to try again",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}


UriReference = Annotated[str, Field(json_schema_extra={"format": "uri-reference"})]
_URI_PATH = "/:@!$&'()*+,;=~"
"""What a path may hold as it is, besides letters, digits and ``-._``."""


class ProblemBody(BaseModel):
    """What went wrong (RFC 9457). ``type`` is stable, ``detail`` is for people."""

    type: UriReference
    title: str
    status: int
    detail: str
    instance: UriReference
    field: str | None = Field(default=None, description="The field that is wrong, where one is")
    known: list[str] | None = Field(default=None, description="What it could have been, where that is a list")


@dataclass(frozen=True, slots=True)
class ProblemType:
    status: int
    name: str
    title: str


MALFORMED = ProblemType(400, "malformed-body", "The body is not JSON")
UNKNOWN_JOB = ProblemType(404, "unknown-job", "No such job")
UNKNOWN_GPU = ProblemType(404, "unknown-gpu", "No such GPU")
UNKNOWN_MODEL = ProblemType(404, "unknown-model", "No such model")
UNKNOWN_AGENT_TYPE = ProblemType(404, "unknown-agent-type", "No model serves this agent type")
UNKNOWN_BENCHMARK = ProblemType(404, "unknown-benchmark", "No such benchmark")
NO_KEY = ProblemType(401, "no-key", "A good API key is needed")
NOT_ALLOWED = ProblemType(403, "not-allowed", "The API key does not allow this")
CROSS_SITE = ProblemType(403, "cross-site", "The page of another site asks for this")
ALREADY_ENDED = ProblemType(409, "already-ended", "The job has already ended")
MODEL_EXISTS = ProblemType(409, "model-exists", "The model is registered already")
MODEL_OF_FILE = ProblemType(409, "model-of-file", "The model belongs to the configuration file")
BENCHMARK_RUNS = ProblemType(409, "benchmark-runs", "A benchmark of this model runs already")
NOT_NOW = ProblemType(409, "not-now", "The model cannot be measured now")
NO_LAUNCHER = ProblemType(409, "no-launcher", "Nothing can carry this out")
TOO_LARGE = ProblemType(413, "too-large", "The body is too large")
UNKNOWN_HOST = ProblemType(421, "unknown-host", "The api does not answer to this name")
INVALID = ProblemType(422, "invalid-request", "A field is wrong")
KEY_REUSED = ProblemType(422, "idempotency-key-reused", "The idempotency key stands for another request")
QUEUE_FULL = ProblemType(429, "queue-full", "The queue is full")
KEY_LIMIT = ProblemType(429, "key-limit", "A limit of the API key is reached")
INTERNAL = ProblemType(500, "internal-error", "The api failed")
UNAVAILABLE = ProblemType(503, "store-unavailable", "Redis cannot be used right now")


class Problem(Exception):
    """An error answer; ``field`` names the wrong field of body, query or headers, ``known`` right values."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        *,
        field: str | None = None,
        known: Iterable[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.field = field
        self.known = None if known is None else sorted(known)
        self.headers = headers


def install(app: FastAPI) -> None:
    """Make every error of the app a problem object."""
    for kind in (Problem, InvalidRequest, StoreUnavailable, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(ClientDisconnect, _nobody_listens)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The declaration of these error answers for OpenAPI."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{SCHEMA}"}}}
    declared: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        declared[status] = {"description": HTTPStatus(status).phrase, "content": content}
        if status in _PASSING:
            declared[status]["headers"] = {"Retry-After": _RETRY_AFTER}
    return declared


async def answered(
    call: Callable[[Request], Awaitable[Response]], scope: Scope, receive: Receive, send: Send
) -> None:
    """Send what ``call`` answers or the answer of its error: past FastAPI what ``install`` is in it."""
    request = Request(scope, receive)
    try:
        response = await call(request)
    except ClientDisconnect as error:
        response = await _nobody_listens(request, error)
    except (Problem, InvalidRequest, StoreUnavailable) as error:
        response = await _answer(request, error)
    except Exception as error:
        await (await _answer(request, error))(scope, receive, send)
        raise  # the server logs it
    await response(scope, receive, send)


async def _answer(request: Request, error: Exception) -> Response:
    problem = _problem_of(error, request)
    if problem.kind is UNAVAILABLE:
        logger.debug("503 for {} {}: {}", request.method, request.url.path, error)
    return answer(problem, _path(request))


def answer(problem: Problem, path: str) -> Response:
    """The answer that a problem is; ``path`` is that of the request, decoded."""
    kind = problem.kind
    body = ProblemBody(
        type=f"urn:gpu-orchestrator:problem:{kind.name}" if kind.name else "about:blank",
        title=kind.title,
        status=kind.status,
        detail=problem.detail,
        instance=quote(path, safe=_URI_PATH),
        field=problem.field or None,
        known=problem.known,
    )
    return Response(
        body.model_dump_json(exclude_none=True), kind.status, headers=problem.headers, media_type=MEDIA_TYPE
    )


async def _nobody_listens(_: Request, __: Exception) -> Response:
    # The client left while it sent its body: whatever is answered, nobody reads it.
    return Response(status_code=400)


def _problem_of(error: Exception, request: Request) -> Problem:
    match error:
        case Problem():
            return error
        case InvalidRequest():
            return Problem(INVALID, str(error), field=error.field)
        case StoreUnavailable():
            return unavailable(error)
        case RequestValidationError():
            item = error.errors()[0]
            name = str(item["loc"][-1])
            said = "is no parameter of this call" if item["type"] == "extra_forbidden" else item["msg"]
            return Problem(INVALID, f"{name}: {said}", field=name)
        case HTTPException():
            return _of_routing(error, request)
    return Problem(INTERNAL, "an unexpected error: the log of the api says more")


def unavailable(error: StoreUnavailable) -> Problem:
    """What is said while Redis is away."""
    return Problem(
        UNAVAILABLE,
        f"Redis cannot be used right now ({error}): try again",
        headers={"Retry-After": str(_RETRY_AFTER_S)},
    )


def _of_routing(error: HTTPException, request: Request) -> Problem:
    kind = ProblemType(error.status_code, "", HTTPStatus(error.status_code).phrase)
    path = _path(request)
    if error.status_code == 404:
        return Problem(kind, f"nothing is at {path}: GET /docs lists all calls")
    if error.status_code == 405:
        allowed = ", ".join(_calls_of(request)) or (error.headers or {}).get("Allow", "")
        return Problem(kind, f"{path} knows {allowed}, not {request.method}", headers={"Allow": allowed})
    return Problem(kind, str(error.detail), headers=error.headers)


def _calls_of(request: Request) -> list[str]:
    """The methods of this path: Starlette names only those of the first route that has it."""
    app: FastAPI = request.app
    return sorted(
        method.upper()
        for template, methods in app.openapi()["paths"].items()
        if compile_path(template)[0].match(_path(request))
        for method in methods
    )


def _path(request: Request) -> str:
    """As it was decoded: ``request.url`` ends it at a ``?`` or ``#`` in it, and loses line breaks."""
    return str(request.scope["path"])
