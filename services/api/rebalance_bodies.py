"""The shape of the rebalance calls: what would be worth doing, and why."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.api.representations import Body
from services.api.status_bodies import GpuStatus


class RebalanceAction(Body):
    """One thing worth doing; null: does not apply, or unknown. MB of 2^20 bytes, times in s."""

    action: str = Field(description="unload, load, move, reduce_to_one_model, wait or nothing")
    code: str = Field(description="Stable for a kind of reason")
    reason: str
    changes: str = Field(description="What it would bring")
    model: str | None
    gpu: str | None = Field(description="`host/index`")
    to_gpu: str | None = Field(description="Where a model would go")
    unloads: list[str] = Field(description="Idle models that would go")
    frees_mb: float | None
    needs_mb: float | None
    gain_s: float | None = Field(description="Seconds of waiting that it would spare, over all jobs")
    load_s: float | None
    utilization_percent: float | None = Field(description="Of that GPU's memory, afterwards")


class Rebalance(Body):
    """What is recommended on the state as it is now; nothing of it has been carried out."""

    id: str | None = Field(description="Of its entry in orch:control; null for a preview, which leaves none")
    state: Literal["preview", "recommended"]
    actions: list[RebalanceAction] = Field(description="In the order in which they are worth doing")
    notes: list[str] = Field(description="Readings that are missing or old: on these nothing is advised")
    gpus: list[GpuStatus]
