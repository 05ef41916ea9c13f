"""The shape of a registered model: how it was registered, where it stands, what was measured of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from services.api.representations import Body
from services.api.status_bodies import ModelStatus
from shared.registry import Registration

FILE_ONLY = ("command", "api_key_env")
"""Whoever may call the api could otherwise start programs on the GPU hosts, or have the value of
an environment variable sent to a URL of their choice."""


def registration_schema(*required: str) -> dict[str, Any]:
    """JSON schema of what the registry's calls accept: less than a configuration file may hold."""
    schema = Registration.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs")
    properties = schema["properties"]
    for name in FILE_ONLY:
        properties[name] = {"type": "null", "description": "Only in the configuration file"}
    properties["source"] = {"const": "http", "default": "http"}
    reachable = [
        {"required": [name], "properties": {name: {"type": kind}}}
        for name, kind in (("port", "integer"), ("url", "string"))
    ]
    return {**schema, "title": "RegistrationRequest", "required": list(required), "anyOf": reachable}


NAME_SCHEMA: dict[str, Any] = {"pattern": registration_schema()["properties"]["name"]["pattern"]}
"""What a path that registers a model may name."""


class Learned(Body):
    """Moving averages of its own jobs; null before the first."""

    samples: int
    avg_latency_ms: float | None
    tokens_per_second: float | None = Field(description="Output of one request alone")
    prefill_tokens_per_second: float | None
    avg_output_tokens: float | None
    failure_share: float = Field(description="0 to 1, fades with a half-life of 60 s")
    requests_per_minute: float = Field(description="Over about the last ten minutes")


class LastBenchmark(Body):
    """The last benchmark that this registration alone served; medians."""

    benchmark_id: str
    at_ms: int | None = Field(description="When it ended, ms since 1970")
    requests: int | None
    concurrency: int | None
    ttft_ms: float | None
    latency_ms: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


class ModelDetail(ModelStatus):
    """A model as in GET /v1/gpu/status, with what only a look at this one needs."""

    name: str
    source: Literal["file", "http"] = Field(description="file: of a configuration file, which wins")
    registration: Registration = Field(description="As it was registered; PUT takes it back")
    learned: Learned
    benchmark: LastBenchmark | None


class ModelList(Body):
    models: list[ModelDetail] = Field(description="By name")
