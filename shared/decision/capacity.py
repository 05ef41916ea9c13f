"""How many requests each model and each GPU may have in flight, and how many they have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shared.decision.levels import concurrency_factor
from shared.decision.memo import Memo, once
from shared.decision.readings import finite
from shared.decision.snapshot import Gpu, Model, Snapshot
from shared.states import Pressure, Residence

_ABSENT = frozenset({Residence.UNLOADED, Residence.SLEEPING, Residence.FAILED})
_AWAKE = frozenset({Residence.RESIDENT, Residence.UNKNOWN})
_SEVERITY = {
    Pressure.UNKNOWN: 0,
    Pressure.LOW: 1,
    Pressure.NORMAL: 2,
    Pressure.HIGH: 3,
    Pressure.CRITICAL: 4,
}


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """A GPU with what this snapshot allows on it.

    ``slots`` are those of all models on it, ``limit`` is the most requests in flight, ``smallest`` the one
    model that serves at critical memory pressure (None: no model is resident).
    """

    gpu: Gpu
    factor: float
    slots: int
    limit: int
    smallest: str | None


@dataclass(frozen=True, slots=True)
class ModelRoom:
    """A model with its GPUs; over several GPUs the hottest one decides its ``limit``."""

    model: Model
    gpus: tuple[GpuRoom, ...]
    busy: int
    limit: int
    memo: Memo = field(default_factory=dict, init=False, compare=False, repr=False)
    """What follows from the fields above and the rules of their snapshot."""

    @property
    def claim_limit(self) -> int:
        """The most of our own requests in flight: a half-open breaker lets one probe through."""
        return min(1, self.limit) if self.model.breaker_half_open else self.limit


def round_half_up(value: float) -> int:
    """The nearest integer, halves upwards (Python's own ``round`` takes them to the even one)."""
    return math.floor(value + 0.5)


def limited(slots: int, factor: float) -> int:
    """The most in flight on ``slots`` at this concurrency factor: at least 1, and 0 only at factor 0."""
    return 0 if factor <= 0 else max(1, round_half_up(slots * factor))


def busy(model: Model) -> int:
    """Requests on the model: our own now, and others' as of the last probe; unknown parts are left out.

    A probe counts our requests too, and those may have ended since: what it saw beyond ours at that time is
    other clients', or ours that a backend goes on with although their connection is closed.
    """
    seen = (model.backend_running or 0) + (model.backend_waiting or 0)
    if model.probe_in_flight is None:
        return max(0, model.in_flight, seen)
    return max(0, model.in_flight) + max(0, seen - model.probe_in_flight)


def gpu_rooms(snapshot: Snapshot) -> dict[str, GpuRoom]:
    """Every GPU of the snapshot and every one that a model names, by id; worked out once a snapshot."""
    return once(snapshot.memo, "gpu_rooms", lambda: _gpu_rooms(snapshot))


def room_of(model: Model, snapshot: Snapshot) -> ModelRoom:
    """The room of a model of the snapshot; worked out once a snapshot."""
    return once(snapshot.memo, ("room", model.name), lambda: model_room(model, gpu_rooms(snapshot)))


def _gpu_rooms(snapshot: Snapshot) -> dict[str, GpuRoom]:
    placed: dict[str, list[Model]] = {gpu_id: [] for gpu_id in snapshot.gpus}
    for model in snapshot.models.values():
        for gpu_id in model.gpus:
            placed.setdefault(gpu_id, []).append(model)
    return {gpu_id: _gpu_room(snapshot.gpus.get(gpu_id) or Gpu(gpu_id), on) for gpu_id, on in placed.items()}


def model_room(model: Model, gpus: Mapping[str, GpuRoom]) -> ModelRoom:
    """The model's own room, given those of every GPU."""
    own = tuple(gpus[gpu_id] for gpu_id in model.gpus)
    factor = min((gpu.factor for gpu in own), default=1.0)
    return ModelRoom(model, own, busy(model), limited(max(1, model.slots), factor))


def worst_pressure(rooms: Iterable[GpuRoom]) -> Pressure:
    """The highest known memory pressure among a model's GPUs, UNKNOWN where none is known."""
    return max((room.gpu.pressure for room in rooms), key=_SEVERITY.__getitem__, default=Pressure.UNKNOWN)


def _gpu_room(gpu: Gpu, models: list[Model]) -> GpuRoom:
    factor = concurrency_factor(gpu.thermal)
    # What is known to be gone lends no room to the others, but its requests still in flight are counted.
    slots = sum(
        max(1, model.slots) for model in models if model.residence not in _ABSENT or model.in_flight > 0
    )
    awake = [model for model in models if model.residence in _AWAKE]
    smallest = min(awake, key=_by_size).name if awake else None
    return GpuRoom(gpu, factor, slots, limited(slots, factor), smallest)


def _by_size(model: Model) -> tuple[float, str]:
    size = finite(model.vram_gb)
    return (math.inf if size is None else size), model.name
