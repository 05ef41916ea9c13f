"""The shape of GET /v1/gpu/status: the specification's ``gpu`` and ``models``, and what explains them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from services.api.representations import Body
from shared.states import BackendType, Pressure, Residence, Thermal

Gigabytes = Annotated[float | None, Field(description="GB of 2^30 bytes; null: unknown")]
Percent = Annotated[float | None, Field(description="0 to 100; null: unknown")]


class GpuStatus(Body):
    """One GPU; null is unknown."""

    id: int | str | None = Field(description="Index on its host")
    memory_used_gb: Gigabytes = None
    memory_total_gb: Gigabytes = None
    memory_available_gb: Gigabytes = None
    utilization_percent: Percent = Field(default=None, description="Memory in use, of the total")
    temperature_c: float | None = None
    power_draw_w: float | None = None
    is_throttled: bool | None = None
    gpu_utilization_percent: Percent = Field(default=None, description="Compute, as NVML reports it")
    effective_utilization_percent: Percent = Field(
        default=None, description="The figure that pressure is computed on: memory without the pools of vLLM"
    )
    pressure: Pressure = Pressure.UNKNOWN
    thermal: Thermal = Thermal.UNKNOWN
    name: str | None = None
    uuid: str | None = None
    host: str | None = None
    gpu: str | None = Field(default=None, description="`host/index`, its name everywhere else")
    source: str | None = Field(default=None, description="nvml or simulated")
    power_limit_w: float | None = None
    fan_percent: Percent = None
    in_flight: int | None = Field(default=None, description="Requests of ours that run on it")
    sample_age_ms: int | None = None
    stale: bool | None = Field(default=None, description="Older than 3 intervals")
    detail: str | None = Field(default=None, description="Why readings are missing, where they are")


class Breaker(Body):
    state: Literal["closed", "open", "half_open"]
    open_until_ms: int | None = None


class ModelStatus(Body):
    """One registration; what its backend would have to say is null unless a recent probe said it."""

    vram_gb: float | None
    backend: BackendType
    avg_latency_ms: float | None = Field(description="Moving average of its jobs, null before the first")
    queue_size: int = Field(
        description="Jobs that wait for this model by name, here, and requests that wait inside its backend; "
        "jobs for any model are in queue.targets"
    )
    failure_count: int
    residence: Residence
    in_flight: int
    slots: int | None
    context_tokens: int | None
    url: str
    port: int | None
    gpu: str | None = Field(description="`host/index`")
    agent_types: list[str]
    serves: list[str]
    simulated: bool
    breaker: Breaker
    saturated_until_ms: int | None
    backend_running: int | None
    backend_waiting: int | None
    kv_use: float | None
    samples: int = Field(description="Jobs that the averages stand on")
    probe_age_ms: int | None
    probe_error: str | None
    last_error: str | None
    detail: str | None = Field(description="Why its state is not known, where it is not")


class HoldStatus(Body):
    code: str
    reason: str
    since_ms: int | None


class TargetStatus(Body):
    waiting: int
    hold: HoldStatus | None = Field(description="Why its head waits, where it does")


class QueueStatus(Body):
    waiting: int
    running: int
    bound: int
    targets: dict[str, TargetStatus] = Field(description="By model name, or `auto:<agent type>`")


class ServiceStatus(Body):
    instance: str
    service: str
    version: str
    address: str
    age_ms: int = Field(description="Since its last heartbeat")
    alive: bool


class FleetStatus(Body):
    gpu: GpuStatus = Field(description="The first GPU; all are in gpus")
    models: dict[str, ModelStatus]
    gpus: list[GpuStatus]
    queue: QueueStatus
    services: list[ServiceStatus]
    simulated: bool = Field(description="Whether any GPU or model here is simulated")
