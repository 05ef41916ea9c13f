"""When to come again where there is no room for a job now."""

from __future__ import annotations

import math

from shared.store.records import KeyLimits, Submitted

_UNKNOWN_S = 30
_MOST_S = 60
_LIMITS = {
    "in_flight": "{most} jobs in flight",
    "queued": "{most} jobs waiting",
    "per_minute": "{most} jobs a minute",
}


def again_s_of(ended_per_s: float) -> int:
    """Seconds until a place is free again, going by how many jobs end a second."""
    if ended_per_s <= 0:
        return _UNKNOWN_S
    return max(1, min(_MOST_S, math.ceil(1 / ended_per_s)))


def limit_reached(limits: KeyLimits, submitted: Submitted) -> tuple[str, int]:
    """What a client is told whose key has all that it may have, and the seconds until it has room again."""
    again_s = math.ceil(submitted.again_ms / 1000) or again_s_of(submitted.ended_per_s)
    most = _LIMITS[submitted.limit].format(most=getattr(limits, submitted.limit))
    return f"{submitted.limit}: the key {limits.key} may have {most}: try again in {again_s} s", again_s
