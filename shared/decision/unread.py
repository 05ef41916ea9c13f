"""What is not known of the GPUs and models now, so that nothing is called well that nobody has looked at."""

from __future__ import annotations

from shared.decision.causes import AdviceCause, Advised
from shared.decision.explain import last_known, unprobed_words
from shared.decision.placement import is_stale, occupancy
from shared.decision.readings import finite
from shared.decision.snapshot import Advice, Gpu, Model, Snapshot
from shared.states import Pressure, Thermal


def unread(snapshot: Snapshot) -> tuple[Advice, ...]:
    """One entry for each GPU and model on whose readings nothing can be advised now, with the remedy."""
    found = [_gpu(snapshot, gpu_id) for gpu_id in sorted(snapshot.gpus)]
    found += [_model(model) for _, model in sorted(snapshot.models.items()) if model.unprobed]
    if not snapshot.gpus:
        found.append(
            _unknown(
                "no GPU was ever read, so memory and heat are unknown: start a monitor where an NVML driver "
                "is (python -m services.monitor); without one routing goes by load and failures alone"
            )
        )
    return tuple(one for one in found if one is not None)


def _gpu(snapshot: Snapshot, gpu_id: str) -> Advice | None:
    gpu = snapshot.gpus[gpu_id]
    host = gpu_id.rpartition("/")[0]
    if is_stale(gpu):
        since = last_known(gpu) or "nobody knows since when"
        return _unknown(
            f"the readings of GPU {gpu_id} have stopped ({since}), so nothing is advised on them: see that "
            f"the monitor of {host} runs and reaches Redis",
            gpu=gpu_id,
        )
    missing = _missing(gpu)
    if missing:
        return _unknown(
            f"{' and '.join(missing)} of GPU {gpu_id} can't be read, so nothing is advised on that: the log "
            f"of the monitor of {host} says why",
            gpu=gpu_id,
        )
    if occupancy(snapshot, gpu_id).utilization() is None:
        return _unknown(
            f"how much of the memory of GPU {gpu_id} is ours is unknown, so nothing is advised on it: "
            "register vram_gb of every model there",
            gpu=gpu_id,
        )
    return None


def _missing(gpu: Gpu) -> list[str]:
    memory = finite(gpu.memory_total_mb), finite(gpu.memory_used_mb)
    return [
        *(["the memory"] if None in memory or gpu.pressure is Pressure.UNKNOWN else []),
        *(["the heat"] if gpu.thermal is Thermal.UNKNOWN else []),
    ]


def _model(model: Model) -> Advice:
    return _unknown(f"whether {model.name} is there is unknown: {unprobed_words(model)}", model=model.name)


def _unknown(reason: str, *, gpu: str | None = None, model: str | None = None) -> Advice:
    return Advice(
        Advised.NOTHING,
        AdviceCause.UNKNOWN_READINGS,
        reason,
        "nothing; what is worth doing there is told once it is read",
        gpu=gpu,
        model=model,
    )
