"""The shape of GET /v1/gpu/history."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.api.parameters import ModelName, Parameters, Within
from services.api.representations import Body
from services.api.status_bodies import Gigabytes, Percent
from shared.states import Pressure, Residence, Thermal


class HistoryQuery(Parameters):
    limit: Annotated[int, Within(1, 1000)] = 100
    gpu: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="Only this GPU: `host/index`, or the index alone"
    )
    model: ModelName | None = Field(
        default=None, description="Only the GPUs that this model is on, and its probes beside them"
    )


class Sample(Body):
    """One reading of one GPU; null: not read."""

    gpu: str = Field(description="`host/index`")
    ts_ms: int | None = Field(description="When it was taken: ms since 1970 on the clock of Redis")
    memory_used_gb: Gigabytes
    memory_total_gb: Gigabytes
    memory_available_gb: Gigabytes
    utilization_percent: Percent = Field(description="Memory in use, of the total")
    effective_utilization_percent: Percent = Field(description="The figure that pressure is computed on")
    gpu_utilization_percent: Percent = Field(description="Compute")
    temperature_c: float | None
    power_draw_w: float | None
    pressure: Pressure | None = Field(description="null for a late one, which moves no level")
    thermal: Thermal | None
    level_changed: bool
    late: bool = Field(description="A newer one of this GPU was known when it arrived")
    source: str | None = Field(description="nvml or simulated")


class ProbeSample(Body):
    """One probe of one backend; null: it did not tell."""

    model: str
    ts_ms: int | None
    residence: Residence | None
    backend_running: int | None
    backend_waiting: int | None
    kv_use: float | None
    latency_ms: float | None
    error: str | None
    simulated: bool


class History(Body):
    """The last samples to arrive, newest first by the time they were taken."""

    samples: list[Sample]
    probes: list[ProbeSample] | None = Field(description="Of the model that was asked for, newest first")
    gpus: list[str] = Field(description="The GPUs that samples were looked for of")
    detail: str | None = Field(description="Why there are none, where that can be told")
