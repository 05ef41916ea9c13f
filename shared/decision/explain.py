"""The words of a decision: memory, heat and choice as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shared.decision.capacity import ModelRoom
from shared.decision.estimate import tokens_per_second
from shared.decision.memo import once
from shared.decision.memory import MB_PER_GB
from shared.decision.placement import is_stale
from shared.decision.readings import finite
from shared.decision.snapshot import Gpu, Model, Part
from shared.states import Pressure, Thermal

_MOST_NAMES = 12
_SAME_SHARE = 0.005
"""Effective and plain use nearer than this are shown as one figure."""


def listed(names: Iterable[str]) -> str:
    """Names in order, cut where a sentence would get unreadable."""
    ordered = sorted(names)
    rest = len(ordered) - _MOST_NAMES
    shown = ", ".join(ordered[:_MOST_NAMES])
    return f"{shown} and {rest} more" if rest > 0 else shown or "none"


def memory_use(gpu: Gpu) -> str:
    """How much of a GPU's memory is in use, on the figure that its level stands on."""
    share = finite(gpu.effective_utilization)
    if share is None:
        return "use unknown"
    percent = f"{100 * share:.0f} %"
    total, used = finite(gpu.memory_total_mb), finite(gpu.memory_used_mb)
    if total is None or total <= 0:
        return f"{percent} of its memory used"
    if used is not None and abs(used / total - share) > _SAME_SHARE:
        return f"{percent} of its memory outside vLLM pools used"
    return f"{percent} of {total / MB_PER_GB:.1f} GB used"


def degrees(gpu: Gpu) -> str:
    """The temperature, where it is known."""
    temperature = finite(gpu.temperature_c)
    return "temperature unknown" if temperature is None else f"{temperature:.0f} C"


def last_known(gpu: Gpu) -> str:
    """How old what is said of a GPU is; empty while its readings come, or where nobody knows."""
    age = finite(gpu.level_age_ms if gpu.sample_age_ms is None else gpu.sample_age_ms)
    return f"last known {age / 1000:.0f} s ago" if is_stale(gpu) and age is not None else ""


def unprobed_words(model: Model) -> str:
    """Since when nobody looks at a model's server, and what would change that."""
    age = finite(model.unprobed_ms)
    since = "yet" if age is None else f"for {age / 1000:.0f} s"
    remedy = (
        "start one: python -m services.monitor"
        if model.host is None
        else f"start one on its host {model.host!r}, or correct that host"
    )
    return f"no monitor has probed it {since} ({remedy})"


def situation(room: ModelRoom) -> str:
    """Memory and heat of the model's GPUs, unknown ones said to be unknown."""
    if not room.gpus:
        return "it has no GPU reading, memory and heat are unknown and only load and failures count"
    return " and ".join(_gpu_situation(gpu.gpu) for gpu in room.gpus)


def dispatch_reason(chosen: ModelRoom, parts: Mapping[str, Part]) -> str:
    """One sentence on why this model, with its load, speed and the state of its GPUs."""
    model, part = chosen.model, parts[chosen.model.name]
    speed_and_gpus = once(chosen.memo, "speed_and_gpus", lambda: _speed_and_gpus(chosen))
    return (
        f"{model.name} ({model.backend.value}) {_comparison(model.name, parts)}: {part.busy} of {part.limit} "
        f"slots busy, {speed_and_gpus}"
    )


def _speed_and_gpus(room: ModelRoom) -> str:
    unseen = f"; {unprobed_words(room.model)}" if room.model.unprobed else ""
    return f"about {tokens_per_second(room.model):.0f} tokens/s; {situation(room)}{unseen}"


def _comparison(name: str, parts: Mapping[str, Part]) -> str:
    score = parts[name].score
    if len(parts) == 1:
        return f"is the only model that can take it now (score {score:.2f})"
    others = [(part.score, other) for other, part in parts.items() if other != name]
    nearest, rival = min(others)
    if nearest < score:
        return (
            f"is within 5 % of the lowest score ({score:.2f}, {rival} has {nearest:.2f}) "
            "and ahead by KV headroom, temperature or name"
        )
    return f"has the lowest score of {len(parts)} models ({score:.2f}, then {rival} with {nearest:.2f})"


def _gpu_situation(gpu: Gpu) -> str:
    unread = gpu.pressure is Pressure.UNKNOWN, gpu.thermal is Thermal.UNKNOWN
    if all(unread):
        return f"memory and heat of GPU {gpu.id} are unknown"
    memory = (
        "unknown memory pressure"
        if unread[0]
        else f"{gpu.pressure.value} memory pressure ({memory_use(gpu)})"
    )
    heat = "unknown heat" if unread[1] else f"{gpu.thermal.value} heat ({degrees(gpu)})"
    since = f", {last_known(gpu) or 'as last read'}" if is_stale(gpu) else ""
    return f"GPU {gpu.id} has {memory} and {heat}{since}"
