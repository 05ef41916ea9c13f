"""Memory of one GPU as the decisions see it: effective use, what is available, what counts as large."""

from __future__ import annotations

from collections.abc import Iterable

from shared.decision.readings import finite

MB_PER_GB = 1024
LARGE_GB = 15.0
"""A model above this is large (specification, memory pressure levels)."""

_LEAST_SHARED_MB = 0.5 * MB_PER_GB
"""Keeps the share meaningful on a card that a vLLM pool fills."""


def effective_utilization(
    *, total_mb: float | None, used_mb: float | None, pools_mb: Iterable[float | None] = ()
) -> float | None:
    """Share (0..1) of the memory that is in use outside the pools of awake vLLM servers; None = unknown.

    A vLLM server holds its whole pool from start to end, idle or not, so it is a partition and no sign of
    load. A pool of unknown size makes the share unknown. Without pools this is ``used / total``.
    """
    total, used = finite(total_mb), finite(used_mb)
    pools = [finite(pool) for pool in pools_mb]
    if total is None or used is None or total <= 0 or None in pools:
        return None
    held = sum(max(0.0, pool) for pool in pools if pool is not None)
    return min(1.0, max(0.0, used - held) / max(total - held, _LEAST_SHARED_MB))


def available_mb(
    *,
    total_mb: float | None,
    used_mb: float | None,
    reserve_mb: float,
    committed_mb: float = 0.0,
    foreign_mb: float = 0.0,
) -> float | None:
    """Memory in MB that a load may take, 0 or more: ``total - max(used, committed + foreign) - reserve``.

    ``committed_mb`` are the footprints of our own models, ``foreign_mb`` is what others hold. None = unknown.
    """
    total, used = finite(total_mb), finite(used_mb)
    if total is None or used is None:
        return None
    return max(0.0, total - max(used, committed_mb + foreign_mb) - reserve_mb)


def is_large(vram_gb: float | None) -> bool:
    """Whether a model of ``vram_gb`` (GB of 2^30 bytes) counts as large; unknown does not."""
    return vram_gb is not None and vram_gb > LARGE_GB
