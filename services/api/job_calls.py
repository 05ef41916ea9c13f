"""How the calls about jobs stand in the OpenAPI document, where their types alone don't say it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header
from pydantic import WithJsonSchema

from services.api import problems
from services.api.event_stream import ID_PATTERN
from services.api.representations import DECISION_HEADERS, Job, location
from services.api.requests import KEY_SCHEMA
from shared.jobs import RESERVED_PARAMS

Responses = dict[int | str, dict[str, Any]]

_JOB_REQUEST: dict[str, Any] = {
    "allOf": [{"$ref": "#/components/schemas/JobRequest"}],
    "oneOf": [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}}},
    ],
    "properties": {
        "messages": {"items": {"required": ["role"], "properties": {"role": {"type": "string"}}}},
        "params": {"propertyNames": {"not": {"enum": sorted(RESERVED_PARAMS)}}},
    },
}
BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _JOB_REQUEST}}}
}

_SUBMITTED = {"model": Job, "headers": {**location("The job"), **DECISION_HEADERS}}
SUBMIT: Responses = {
    200: {**_SUBMITTED, "description": "It ended within `wait`"},
    202: {**_SUBMITTED, "description": "Accepted: it is safe from now on"},
    **problems.responses(400, 413, 422, 429, 503),
}

_READ = {"model": Job, "headers": DECISION_HEADERS}
READ: Responses = {200: _READ, **problems.responses(404, 422, 503)}
CANCEL: Responses = {
    200: {**_READ, "description": "Cancelled"},
    202: {**_READ, "description": "It runs: its router was asked to cancel it"},
    **problems.responses(404, 409, 503),
}

_EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": ID_PATTERN},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
FOLLOW: Responses = {
    200: {
        "description": "One event a transition: `event` its type, `id` its place in the stream, `data` JSON",
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    },
    204: {"description": "The job has ended and Last-Event-ID was its last event: nothing more will come"},
    **problems.responses(404, 422, 503),
}

IdempotencyKey = Annotated[
    str | None,
    Header(description="Makes a repetition of this request answer with the first one's job"),
    WithJsonSchema(KEY_SCHEMA),
]
LastEventId = Annotated[
    str | None,
    Header(description="Go on after this event; empty: from the start"),
    WithJsonSchema({"type": "string", "pattern": f"^$|{ID_PATTERN}"}),
]
