"""Where no type says what a call takes, the OpenAPI document says it as the api decides it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from tests.kit.api_fixture import ApiClient

_HI = {"role": "user", "content": "hi"}


async def _is_right(api: ApiClient, method: str, path: str, value: Any, header: str | None = None) -> bool:
    """What the document says of a body, or of the value of a header."""
    document = await api.document()
    call = document["paths"][path][method]
    if header is None:
        schema = call["requestBody"]["content"]["application/json"]["schema"]
    else:
        schema = next(one["schema"] for one in call["parameters"] if one["name"] == header)
    rooted = {**schema, "components": document["components"]}
    return jsonschema_rs.validator_for(rooted).is_valid(value)


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ({"prompt": "hi"}, True),
        ({"messages": [_HI]}, True),
        ({"prompt": "hi", "messages": None}, True),
        ({"prompt": "hi", "params": {"top_k": 1}}, True),
        ({}, False),
        ({"prompt": None, "messages": None}, False),
        ({"prompt": "hi", "messages": [_HI]}, False),
        ({"messages": [{"content": "hi"}]}, False),
        ({"messages": [{"role": 1}]}, False),
        ({"prompt": "hi", "params": {"stream": True}}, False),
    ],
    ids=str,
)
async def test_the_document_allows_the_jobs_that_are_accepted(
    api: ApiClient, body: dict[str, Any], right: bool
) -> None:
    answer = await api.post(body)

    assert answer.status == (202 if right else 422), answer
    assert await _is_right(api, "post", "/v1/jobs", body) is right


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({"port": 9}, True),
        ({"url": "http://127.0.0.1:9"}, True),
        ({"port": 9.0, "gpu": 1.0}, True),
        ({"port": 9, "command": None, "api_key_env": None, "source": "http"}, True),
        ({}, False),
        ({"port": None, "url": None}, False),
        ({"port": 9, "source": "file"}, False),
        ({"port": 9, "command": "llama-server"}, False),
        ({"port": 9, "api_key_env": "KEY"}, False),
        ({"port": 9, "gpu": "0" * 65}, False),
    ],
    ids=str,
)
async def test_the_document_allows_the_registrations_that_are_accepted(
    api: ApiClient, fields: dict[str, Any], right: bool
) -> None:
    named = {"name": "gamma", **fields}
    put = await api.call("PUT", "/v1/gpu/models/gamma", data=json.dumps(fields))
    await api.call("DELETE", "/v1/gpu/models/gamma")
    posted = await api.call("POST", "/v1/gpu/models", data=json.dumps(named))

    assert (put.status, posted.status) == ((201, 201) if right else (422, 422)), (put, posted)
    assert await _is_right(api, "put", "/v1/gpu/models/{name}", fields) is right
    assert await _is_right(api, "post", "/v1/gpu/models", named) is right


@pytest.mark.parametrize(
    ("value", "right"), [("a key", True), ("k" * 255, True), ("", False), ("k" * 256, False), ("ä", False)]
)
async def test_the_document_allows_the_idempotency_keys_that_are_accepted(
    api: ApiClient, value: str, right: bool
) -> None:
    answer = await api.post({"prompt": "hi"}, Idempotency_Key=value)

    assert answer.status == (202 if right else 422), answer
    assert await _is_right(api, "post", "/v1/jobs", value, "idempotency-key") is right


@pytest.mark.parametrize(
    ("value", "right"), [("", True), ("0-0", True), ("0", False), ("null", False), ("0-0-0", False)]
)
async def test_the_document_allows_the_last_event_ids_that_are_accepted(
    api: ApiClient, value: str, right: bool
) -> None:
    job = await api.submit()
    await api.call("DELETE", f"/v1/jobs/{job}")
    path = f"/v1/jobs/{job}/events"

    answer = await api.get(path, headers={"Last-Event-ID": value})

    assert answer.status == (200 if right else 422), answer
    assert await _is_right(api, "get", "/v1/jobs/{job_id}/events", value, "last-event-id") is right


async def test_a_field_of_several_types_is_named_without_them(api: ApiClient) -> None:
    answer = await api.call("PUT", "/v1/gpu/models/gamma", data=json.dumps({"port": 9, "gpu": -1}))

    assert answer.problem(422)["field"] == "gpu"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("PUT", "/v1/gpu/models/a%0Ab", 404), ("GET", "/v1/jobs/a%23b", 404), ("GET", "/%3Fb%20c", 404)],
)
async def test_a_problem_names_the_whole_path_however_odd_it_is(
    api: ApiClient, method: str, path: str, status: int
) -> None:
    answer = await api.call(method, path, data="{}")

    assert answer.problem(status)["instance"] == path
