"""The shape of GET /v1/gpu/memory-forecast."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.api.representations import Body
from services.api.status_bodies import Gigabytes, Percent
from shared.decision.forecast import Quality


class Range(Body):
    """``low <= mid <= high``; null: not known. The interval is to cover 90 % of what comes."""

    low: float | None = None
    mid: float | None = None
    high: float | None = None


class CurrentUsage(Body):
    """As last sampled; null is unknown."""

    used_gb: Gigabytes = None
    total_gb: Gigabytes = None
    free_gb: Gigabytes = None
    utilization_percent: Percent = None
    sample_age_ms: int | None = None
    stale: bool | None = Field(default=None, description="Older than 3 intervals")


class Available(Body):
    """What a load may take, after the reserve."""

    now_gb: Gigabytes = None
    projected_gb: Range = Range()
    at_peak_gb: Gigabytes = Field(
        default=None, description="Left at the highest foreign use on the way, with 90 % confidence"
    )


class Foreign(Body):
    """Memory that is not ours (a game, ComfyUI, the desktop): forecast from its own history."""

    now_gb: Gigabytes = None
    projected_gb: Range = Range()
    peak_high_gb: Gigabytes = Field(
        default=None, description="Bound of its highest use on the way, with 90 % confidence"
    )


class Managed(Body):
    """What our models hold there, as measured, else as registered: projected to stay."""

    now_gb: Gigabytes = None
    projected_gb: Gigabytes = None
    models: list[str] = Field(default_factory=list)


class Track(Body):
    """How the forecast was made, and how good forecasts made the same way have been in its history."""

    method: str
    quality: Quality
    history_hours: float
    mase: Annotated[
        float | None, Field(description="Mean absolute error over that of the last value; below 1 is better")
    ]
    mase_seasonal: Annotated[
        float | None, Field(description="The same over that of the value one day earlier")
    ]
    coverage: Annotated[
        float | None, Field(description="Share of past values that lay in their interval; wanted is 0.9")
    ]
    checked: Annotated[int, Field(description="Past forecasts that coverage stands on")]
    weights: Annotated[dict[str, float], Field(description="The rules' shares in the forecast")]


class GpuForecast(Body):
    """One GPU, memory in GB of 2^30 bytes."""

    gpu: str | None = Field(description="`host/index`; null: no GPU was sampled yet")
    current_usage: CurrentUsage = CurrentUsage()
    projected_usage_gb: Range = Range()
    projected_headroom_gb: Range = Field(default=Range(), description="Total less projected usage")
    available_for_inference: Available = Available()
    reserve_gb: Gigabytes = None
    foreign: Foreign = Foreign()
    managed: Managed = Managed()
    forecast: Track
    source: str | None = Field(default=None, description="nvml or simulated")
    detail: str | None = Field(default=None, description="What is missing or weak, where something is")


class RateForecast(Body):
    """Requests a minute that start on one model, retries apart."""

    now: float | None
    projected: Range
    forecast: Track
    detail: str | None = None


class MemoryForecast(Body):
    """The first GPU (or the one asked for) flat, as the specification has it, and all of them in ``gpus``."""

    hours: float
    level: float = Field(description="The share of truths that intervals are to cover")
    gpu: str | None
    current_usage: CurrentUsage
    projected_headroom_gb: Range
    available_for_inference: Available
    forecast: Track
    detail: str | None
    gpus: list[GpuForecast]
    requests_per_minute: dict[str, RateForecast] = Field(description="By model")
