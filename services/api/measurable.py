"""Which GPUs a model would be measured on, and whether they are in a state for it."""

from __future__ import annotations

from collections.abc import Sequence

from shared.decision.snapshot import Gpu, Model, Snapshot
from shared.states import Pressure, Thermal


def serving(snapshot: Snapshot, name: str) -> list[Model]:
    """The registrations that answer to this name."""
    return [model for model in snapshot.models.values() if name in model.serves]


def gpus_of(snapshot: Snapshot, models: Sequence[Model]) -> list[Gpu]:
    """The GPUs that these models are on, as far as that is known."""
    ids = sorted({gpu for model in models for gpu in model.gpus})
    return [snapshot.gpus[gpu] for gpu in ids if gpu in snapshot.gpus]


def critical(gpus: Sequence[Gpu]) -> str | None:
    """Why nothing is to be measured on these GPUs now, None if no level of theirs is critical."""
    for gpu in gpus:
        if gpu.pressure is Pressure.CRITICAL:
            return f"GPU {gpu.id} is at critical memory pressure"
        if gpu.thermal is Thermal.CRITICAL:
            return f"GPU {gpu.id} is at critical heat"
    return None
