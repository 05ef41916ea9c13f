"""The memory of one GPU with what is on it: whose it is, what is free, and how that is after a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shared.decision.footprint import held_mb
from shared.decision.memory import MB_PER_GB, available_mb, effective_utilization
from shared.decision.readings import finite
from shared.decision.snapshot import Gpu, Model, Snapshot
from shared.states import BackendType, Pressure, Residence

STALE_INTERVALS = 3
"""A reading older than so many intervals decides no load (decision model, section 2)."""

_HOLDS_ALL = frozenset({Residence.RESIDENT, Residence.DRAINING})
_MOVING = frozenset({Residence.LOADING, Residence.UNLOADING})


@dataclass(frozen=True, slots=True)
class Occupancy:
    """A GPU's memory in MB; None = unknown.

    ``committed`` are the footprints of our models that are resident, draining, loading or unloading;
    ``foreign`` is what others hold, and all that is not known to be ours.
    """

    gpu: Gpu
    models: tuple[Model, ...]
    reserve_mb: float
    committed_mb: float | None
    foreign_mb: float | None
    available_mb: float | None

    def available_without(self, leaving: Iterable[Model]) -> float | None:
        """What a load may take once these models are gone."""
        gone = sum(held_mb(model) or 0.0 for model in leaving)
        used = finite(self.gpu.memory_used_mb)
        if used is None or self.committed_mb is None or self.foreign_mb is None:
            return None
        return available_mb(
            total_mb=self.gpu.memory_total_mb,
            used_mb=used - gone,
            reserve_mb=self.reserve_mb,
            committed_mb=self.committed_mb - gone,
            foreign_mb=self.foreign_mb,
        )

    def utilization(
        self, leaving: Iterable[Model] = (), arriving: tuple[Model, float] | None = None
    ) -> float | None:
        """Share of memory in use outside vLLM pools, without some models and with one more of so many MB."""
        used, total = finite(self.gpu.memory_used_mb), finite(self.gpu.memory_total_mb)
        if used is None or total is None or self.committed_mb is None or self.foreign_mb is None:
            return None
        leaving = tuple(leaving)
        names = {model.name for model in leaving}
        pools = [
            held_mb(model)
            for model in self.models
            if model.backend is BackendType.VLLM
            and model.residence in _HOLDS_ALL | _MOVING
            and model.name not in names
        ]
        held = max(used, self.committed_mb + self.foreign_mb) - sum(
            held_mb(model) or 0.0 for model in leaving
        )
        if arriving is not None:
            model, needs = arriving
            held += needs
            if model.backend is BackendType.VLLM:
                pools.append(needs)
        return effective_utilization(total_mb=total, used_mb=max(0.0, held), pools_mb=pools)


def occupancy(snapshot: Snapshot, gpu_id: str) -> Occupancy:
    """Who holds the memory of a GPU, as far as it is known."""
    gpu = snapshot.gpus.get(gpu_id) or Gpu(gpu_id)
    models = tuple(model for _, model in sorted(snapshot.models.items()) if gpu_id in model.gpus)
    reserve = snapshot.rules.reserve_gb if gpu.reserve_gb is None else gpu.reserve_gb
    committed, foreign = _shares(gpu, models)
    known = committed is not None and foreign is not None
    free = available_mb(
        total_mb=gpu.memory_total_mb,
        used_mb=gpu.memory_used_mb,
        reserve_mb=reserve * MB_PER_GB,
        committed_mb=committed or 0.0,
        foreign_mb=foreign or 0.0,
    )
    return Occupancy(gpu, models, reserve * MB_PER_GB, committed, foreign, free if known else None)


def is_stale(gpu: Gpu) -> bool:
    """Whether nothing was read of it for so long that what is known may be true no longer."""
    age = finite(gpu.sample_age_ms)
    return age is None or age > STALE_INTERVALS * gpu.interval_ms


def is_fresh(gpu: Gpu) -> bool:
    """Whether its last reading may decide a load; never read is not."""
    return not is_stale(gpu) and gpu.pressure is not Pressure.UNKNOWN


def in_transition(models: Iterable[Model]) -> Model | None:
    """The first model that is being loaded or unloaded: one at a time on a GPU."""
    changing = _MOVING | {Residence.DRAINING}
    return next((model for model in models if model.residence in changing), None)


def _shares(gpu: Gpu, models: Iterable[Model]) -> tuple[float | None, float | None]:
    """Committed and foreign memory.

    A resident model of unknown size counts as foreign, since it is part of what is used. One of unknown size
    that is still coming makes both unknown: how much it will take can't be told. Over several GPUs a model is
    taken to hold all of its memory on each.
    """
    used = finite(gpu.memory_used_mb)
    settled = sum(held_mb(model) or 0.0 for model in models if model.residence in _HOLDS_ALL)
    moving = [held_mb(model) for model in models if model.residence in _MOVING]
    if used is None or None in moving:
        return None, None
    # While a model comes or goes what it holds just now counts twice: that errs on the safe side.
    return settled + sum(size for size in moving if size is not None), max(0.0, used - settled)
