"""The shape of a benchmark: what was asked for, what came out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.api.parameters import Parameters, Within
from services.api.representations import Body, JobError
from shared.states import JobState, Pressure, Thermal

LONGEST_S = 300.0


class BenchmarkParameters(Parameters):
    """What a benchmark does."""

    duration_s: Annotated[float, Within(0.5, LONGEST_S, "seconds")] = Field(
        default=30.0, description="How long new requests are sent"
    )
    prompt_tokens: Annotated[int, Within(1, 100_000)] = Field(
        default=128, description="Length of each prompt, at four characters a token"
    )
    max_tokens: Annotated[int, Within(1, 100_000)] = Field(default=64, description="Output of each request")
    concurrency: Annotated[int, Within(1, 64)] = Field(default=1, description="Most requests at once")
    count: Annotated[int, Within(1, 10_000)] | None = Field(
        default=None, description="Most requests in all; left out: as many as the duration allows"
    )


class Spread(Body):
    """Nearest-rank percentiles of what was measured."""

    p50: float
    p90: float
    p99: float
    mean: float


class LevelSeen(Body):
    """A combination of levels that a GPU of the model had while it was measured."""

    gpu: str
    pressure: Pressure
    thermal: Thermal


class Figures(Body):
    """Null: nothing to measure it on. Spans in ms, speeds in tokens a second of one request."""

    requests: int = Field(default=0, description="Requests that were served, with or without success")
    succeeded: int = 0
    errors: dict[str, int] = Field(default_factory=dict, description="Requests that failed, by type")
    ttft_ms: Spread | None = Field(default=None, description="From dispatch to the first token")
    prefill_tokens_per_second: Spread | None = Field(
        default=None, description="As the backend tells it, else prompt over time to first token"
    )
    decode_tokens_per_second: Spread | None = Field(
        default=None, description="As the backend tells it, else output after the first token over its time"
    )
    latency_ms: Spread | None = Field(default=None, description="From submission to the end")
    queue_wait_ms: Spread | None = Field(default=None, description="From submission to dispatch")
    output_tokens_per_second: float | None = Field(
        default=None, description="Of all requests together, from the first submission to the last end"
    )
    prompt_tokens: int = Field(default=0, description="Of all successful requests, as the backend counts")
    output_tokens: int = 0
    served_by: dict[str, int] = Field(default_factory=dict, description="Successful requests by registration")
    levels: list[LevelSeen] = Field(default_factory=list, description="What it ran under, in order")
    yielded_ms: int = Field(
        default=0, description="Time in which live traffic wanted the model and went first"
    )
    ended_early: str | None = Field(default=None, description="Why no more was sent, where it was not time")
    simulated: bool = Field(default=False, description="Whether these figures are those of a simulated model")


class Benchmark(Figures):
    """A benchmark as it stands: figures are those of its end, but for `requests`, which counts on the way."""

    benchmark_id: str
    model: str
    state: JobState = Field(description="running, succeeded, failed (see error) or cancelled")
    location: str
    started_ms: int | None
    finished_ms: int | None
    parameters: BenchmarkParameters | None
    error: JobError | None
