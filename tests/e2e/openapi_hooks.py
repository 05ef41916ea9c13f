"""What schemathesis is told besides the OpenAPI document: bounds of what it asks for, and one more check."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import CoveragePhaseData, CoverageScenario

LONGEST_S = 0.5
"""Of a wait, a benchmark and a job's deadline: what lasts as long as it is asked to is asked to be short."""
_LASTING = ("duration_s", "wait", "deadline_s", "X-Deadline-S")
_MODEL = "alpha"
_AGENT_TYPE = "Chat"
_DISCARD = 9
"""A port on which nothing listens: registered servers are probed, so they must be none of this machine's."""


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]) -> None:
    """Shorten what lasts and keep away from other servers; a value that is wrong stays as it is."""
    if case.operation.path == "/v1/gpu/benchmark-model" and case.method == "POST":
        for name in ("duration_s", "wait"):
            case.query.setdefault(name, LONGEST_S)
    _shorten(case.query)
    _shorten(case.headers)
    if isinstance(case.body, dict):
        _shorten(case.body)
        _keep_here(case.body)
    if _is_right(case):
        _fit(case)


@schemathesis.check
def problems_tell_their_own_status(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """RFC 9457: a problem object's ``status`` is that of the answer."""
    media = (response.headers.get("content-type") or [""])[0]
    if media == "application/problem+json":
        assert response.json()["status"] == response.status_code, case.operation.label


def _shorten(values: MutableMapping[str, Any]) -> None:
    for name in _LASTING:
        if name in values and _is_longer(values[name]):
            values[name] = str(LONGEST_S) if name.startswith("X-") else LONGEST_S


def _is_longer(value: Any) -> bool:
    try:
        return float(value) > LONGEST_S
    except (TypeError, ValueError):
        return False


def _keep_here(body: dict[str, Any]) -> None:
    port, url = body.get("port"), body.get("url")
    if isinstance(port, int) and 1 <= port <= 65535:
        body["port"] = _DISCARD
    if isinstance(url, str) and url.startswith("http"):
        body["url"] = f"http://127.0.0.1:{_DISCARD}"


def _fit(case: schemathesis.Case[Any]) -> None:
    """What no schema says: a key not used before, models that exist, the name of a path in its body."""
    if "idempotency-key" in case.headers:
        case.headers["idempotency-key"] = str(uuid4())
    if "model_name" in case.query:
        case.query["model_name"] = _MODEL
        for name in ("prompt_tokens", "max_tokens"):
            case.query[name] = 1
    if "X-Agent-Type" in case.headers:
        case.headers["X-Agent-Type"] = _AGENT_TYPE
    if isinstance(case.body, dict):
        for name, known in (("model", _MODEL), ("agent_type", _AGENT_TYPE)):
            if isinstance(case.body.get(name), str):
                case.body[name] = known
        if case.method == "PUT":
            case.body.pop("name", None)
        if _is_passed_on(case):
            _fit_backend(case.body)


def _fit_backend(body: dict[str, Any]) -> None:
    """What its backend takes, which the api leaves to it."""
    for name in ("prompt", "input"):
        if name in body:
            body[name] = "hi"
    if "messages" in body:
        body["messages"] = [{"role": "user", "content": "hi"} for _ in body["messages"]]


def _is_passed_on(case: schemathesis.Case[Any]) -> bool:
    return "openai" in (case.operation.tags or ())


def _is_right(case: schemathesis.Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_positive


@schemathesis.hook
def filter_failure(
    _: schemathesis.HookContext,
    failure: Failure,
    case: schemathesis.Case[Any],
    response: schemathesis.Response,
) -> bool:
    """Whether it counts."""
    if isinstance(failure, AcceptedNegativeData):
        return not _is_lenient(case)
    return isinstance(failure, ServerError) or not _is_of_a_backend(case, response)


def _is_lenient(case: schemathesis.Case[Any]) -> bool:
    """Whether it may be taken: ``"3"`` as 3 and 0 as false in a body, and headers that mean nothing here."""
    if case.meta is None:
        return False
    data = case.meta.phase.data
    if isinstance(data, CoveragePhaseData):
        unknown = data.scenario is CoverageScenario.OBJECT_UNEXPECTED_PROPERTIES
        return data.scenario is CoverageScenario.INCORRECT_TYPE or (
            unknown and data.parameter_location is ParameterLocation.HEADER
        )
    return bool(data.mutations) and all("type" in mutation.keywords for mutation in data.mutations)


def _is_of_a_backend(case: schemathesis.Case[Any], response: schemathesis.Response) -> bool:
    """Whether a backend refused it: that comes in its own words and status, which nobody can declare."""
    chosen = "x-orchestrator-model" in response.headers
    return _is_passed_on(case) and chosen and response.status_code >= 400
