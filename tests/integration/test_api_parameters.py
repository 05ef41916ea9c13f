"""Query parameters of every call of the native API: unknown and repeated ones are refused, by name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.kit.api_fixture import ApiClient, at_rest
from tests.kit.store_fixture import Store


async def test_every_call_refuses_a_parameter_that_it_does_not_have(api: ApiClient, api_store: Store) -> None:
    before = await at_rest(api_store)
    calls = await _calls(api)
    assert {"/v1/gpu/status", "/v1/gpu/rebalance", "/v1/jobs", "/readyz", "/"} <= {
        path for _, path, _ in calls
    }

    for method, path, known in calls:
        problem = (await api.call(method, f"{path}?limitt=1")).problem(422)
        assert (problem["field"], problem["known"]) == ("limitt", known), (method, path)
        assert "limitt: is no parameter of this call" in problem["detail"]

    assert await at_rest(api_store) == before


async def test_every_call_refuses_a_parameter_that_comes_twice(api: ApiClient, api_store: Store) -> None:
    before = await at_rest(api_store)
    repeated = [(method, path, name) for method, path, known in await _calls(api) for name in known]
    assert ("GET", "/v1/jobs", "limit") in repeated

    for method, path, name in repeated:
        problem = (await api.call(method, f"{path}?{name}=1&{name}=2")).problem(422)
        assert problem["field"] == name, (method, path)
        assert problem["detail"] == f"{name}: is given 2 times: give it once"

    assert await at_rest(api_store) == before


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/gpu/rebalance?execute=true", "execute: is no parameter of this call; it has none"),
        ("/v1/gpu/status?gpu=0", "gpu: is no parameter of this call; it has none"),
        ("/v1/jobs?state=queued&states=running", "states: is no parameter of this call; known: limit, state"),
        ("/v1/gpu/models/alpha?verbose=1", "verbose: is no parameter of this call; it has none"),
    ],
)
async def test_the_answer_lists_what_exists(api: ApiClient, path: str, said: str) -> None:
    assert (await api.get(path)).problem(422)["detail"] == said


async def test_a_very_long_name_is_not_repeated_as_it_is(api: ApiClient) -> None:
    problem = (await api.get(f"/v1/gpu/status?{'x' * 5000}=1")).problem(422)

    assert len(problem["detail"]) < 200
    assert problem["field"] == "x" * 60


async def _calls(api: ApiClient) -> list[tuple[str, str, list[str]]]:
    """Every native call of the document: method, a path without templates, names of its query parameters."""
    found: list[tuple[str, str, list[str]]] = []
    paths: dict[str, Any] = (await api.document())["paths"]
    for template, methods in paths.items():
        if template.startswith("/v1/") and not template.startswith(("/v1/jobs", "/v1/gpu")):
            continue  # the OpenAI-compatible calls have their own errors
        for method, call in methods.items():
            names = sorted(one["name"] for one in call.get("parameters", []) if one["in"] == "query")
            found.append((method.upper(), re.sub(r"\{\w+\}", "none", template), names))
    return found
