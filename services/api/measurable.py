"""What is measured under a name, on which GPUs, and whether these are in a state for it."""

from __future__ import annotations

from collections.abc import Sequence

from shared.decision.snapshot import Gpu, Model, Snapshot
from shared.states import Pressure, Thermal
from shared.store.benchmarks import Measurable


def serving(snapshot: Snapshot, name: str) -> list[Model]:
    """The registrations that answer to this name."""
    return [model for model in snapshot.models.values() if name in model.serves]


def measurable(name: str, models: Sequence[Model]) -> Measurable:
    """What a benchmark of this name measures, with all that live traffic calls it by."""
    anything = not all(model.agent_types for model in models)
    agents = set() if anything else {agent for model in models for agent in model.agent_types}
    return Measurable(
        model=name,
        registrations=tuple(sorted(model.name for model in models)),
        names=tuple(sorted({served for model in models for served in model.serves})),
        agent_types=tuple(sorted(agents)),
    )


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
