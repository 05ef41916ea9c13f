"""The shape of a registered model: how it was registered, where it stands, what was measured of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.api.representations import Body
from services.api.status_bodies import ModelStatus
from shared.registry import Registration


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
