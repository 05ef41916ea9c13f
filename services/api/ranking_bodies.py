"""The shape of GET /v1/gpu/models-optimal."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.api.parameters import AgentName, ModelName, Parameters, Within
from services.api.representations import Body, Decision
from services.api.status_bodies import GpuStatus
from shared.states import BackendType, Mode, Residence


class RankingQuery(Parameters):
    """The request that the models are ranked for; what is left out is what a job without it would get."""

    agent_type: AgentName | None = None
    model: ModelName | None = Field(
        default=None, description="Only models that answer to this name; or `auto`"
    )
    min_context_tokens: Annotated[int, Within(0, 100_000_000)] = 0
    max_tokens: Annotated[int, Within(1, 1_000_000)] | None = None
    prompt_tokens: Annotated[int, Within(1, 100_000_000)] = 1
    prefer_llama_cpp: bool = False
    mode: Mode | None = None
    priority: Annotated[int, Within(0, 9)] | None = None


class ScoreParts(Body):
    """What the order stands on, 1 is best (routing's own factors turned round); null: unknown."""

    fit: float | None = Field(
        description="1 if resident, else the share of its GPU's memory that would be left after loading it"
    )
    latency: float = Field(description="Service time of the fastest candidate over its own")
    reliability: float = Field(description="1 - moving average of its failures")
    affinity: float = Field(description="1 if it lists the agent type, else 0.67")
    load: float = Field(description="Share of its slots that is free")
    mode: float = Field(description="1 if its backend suits the job's mode and the card's state, else less")
    size: float = Field(description="1 if its size suits the memory pressure best, else less")
    routing_score: float | None = Field(description="The product that routing compares, lower is better")


class RankedModel(Body):
    rank: int | None = Field(description="1 is the model that would be chosen; null: it cannot take it now")
    model: str
    backend: BackendType
    port: int | None
    url: str
    gpu: str | None = Field(description="`host/index`, several joined by commas")
    score: float = Field(
        description="Lowest routing score over its own: 1 is best, 0 is left out; ties (within 5 %) are "
        "settled by the order"
    )
    parts: ScoreParts
    code: str = Field(description="chosen, fallback or candidate, else why it is left out")
    reason: str
    would_be_chosen: bool
    estimated_duration_ms: float | None = Field(
        description="Wait, prefill and all of max_tokens; null: left out"
    )
    residence: Residence
    vram_gb: float | None
    in_flight: int
    simulated: bool


class Ranking(Body):
    """Models in the order in which routing would take them, for one request, now."""

    decision: Decision = Field(description="What would be done with the request, in routing's own words")
    models: list[RankedModel] = Field(description="Best first; those that are left out come last, by name")
    notes: list[str] = Field(description="Readings that are missing or old")
    gpus: list[GpuStatus]
    simulated: bool = Field(description="Whether any model or GPU here is simulated")
