"""What a model costs: memory it needs and gives back, seconds to load, and what keeping it is worth."""

from __future__ import annotations

from shared.decision.memory import MB_PER_GB
from shared.decision.readings import finite
from shared.decision.snapshot import Model
from shared.states import BackendType, Residence

LEAST_MARGIN_MB = 300.0
"""Least safety added to a footprint (decision model, section 2)."""

UNUSED_RATE = 1 / 21_600
"""Arrivals per second that a model never used counts as: one in 6 hours (section 5)."""

_LOAD_S = {BackendType.LLAMA_CPP: 2.0, BackendType.VLLM: 60.0}
_WAKE_S = 1.0
_S_PER_GB = 0.5
_LEAST_SIZE_GB = 0.1
_LONGEST_LOAD_S = 3600.0


def declared_mb(model: Model) -> float | None:
    """The registered size in MB, None where it is unknown."""
    size = finite(model.vram_gb)
    return None if size is None else max(0.0, size) * MB_PER_GB


def held_mb(model: Model) -> float | None:
    """What the model holds while resident, which is what its unload frees: measured, else declared."""
    measured = finite(model.footprint_mb)
    return max(0.0, measured) if measured is not None else declared_mb(model)


def needs_mb(model: Model) -> float | None:
    """What must be free for its load: the larger of declared and measured, and a margin; None = unknown."""
    known = [size for size in (declared_mb(model), finite(model.footprint_mb)) if size is not None]
    if not known:
        return None
    return max(0.0, *known) + max(LEAST_MARGIN_MB, finite(model.footprint_error_mb) or 0.0)


def load_seconds(model: Model) -> float:
    """Seconds until it serves: measured, else by backend and size; a sleeper only has to wake."""
    measured = finite(model.load_seconds)
    if measured is not None and measured > 0:
        return min(measured, _LONGEST_LOAD_S)
    base = _WAKE_S if model.residence is Residence.SLEEPING else _LOAD_S[model.backend]
    return min(base + _S_PER_GB * (declared_mb(model) or 0.0) / MB_PER_GB, _LONGEST_LOAD_S)


def worth(model: Model) -> float:
    """The value of keeping it resident: arrivals a second * seconds to load / GB. The lowest goes first."""
    rate = finite(model.rate_6h)
    size_gb = max(_LEAST_SIZE_GB, (held_mb(model) or 0.0) / MB_PER_GB)
    return (UNUSED_RATE if rate is None else max(0.0, rate)) * load_seconds(model) / size_gb
