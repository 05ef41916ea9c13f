"""The stable codes of decisions: why a model is left out, why a request waits or is refused."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why a model is left out, or what a request waits for; the first two only ever refuse."""

    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_AGENT_TYPE = "unknown_agent_type"
    NOT_SERVING = "not_serving"
    CONTEXT_TOO_SMALL = "context_too_small"
    CONTEXT_UNKNOWN = "context_unknown"
    BREAKER_OPEN = "breaker_open"
    SATURATED = "saturated"
    NAME_UNKNOWN = "name_unknown"  # its server knows no model by the name that it is called there
    NOT_RESIDENT = "not_resident"
    MEMORY_CRITICAL = "memory_critical"
    MEMORY_FULL = "memory_full"
    HEAT_CRITICAL = "heat_critical"
    GPU_BUSY = "gpu_busy"
    MODEL_BUSY = "model_busy"
    KV_FULL = "kv_full"
    DEADLINE = "deadline"
    CLAIMED_BUSY = "claimed_busy"
    UNPROBED = "unprobed"  # it could be tried, but a model that is known to answer can take the request


class Choice(StrEnum):
    """The codes of a dispatch."""

    CHOSEN = "chosen"
    FALLBACK = "fallback"  # another model than the named one


class LoadCause(StrEnum):
    """Why a model can't be loaded now."""

    UNKNOWN_MODEL = "unknown_model"
    NOT_ABSENT = "not_absent"  # it serves already, or nobody knows
    IN_TRANSITION = "in_transition"
    LOAD_IN_PROGRESS = "load_in_progress"  # of another model on the same GPU
    RECENT_SWAP = "recent_swap"
    VICTIMS_BUSY = "victims_busy"
    LARGE_UNDER_PRESSURE = "large_under_pressure"
    MEMORY_CRITICAL = "memory_critical"
    HEAT_CRITICAL = "heat_critical"
    STALE_READING = "stale_reading"
    MEMORY_UNKNOWN = "memory_unknown"
    ALL_PINNED = "all_pinned"
    TOO_LARGE = "too_large"
    FOOTPRINT_UNKNOWN = "footprint_unknown"
    NO_GPU = "no_gpu"


class Advised(StrEnum):
    """What an advice says to do."""

    REDUCE = "reduce_to_one_model"
    UNLOAD = "unload"
    MOVE = "move"
    LOAD = "load"
    WAIT = "wait"  # a model is wanted and can't be loaded now
    NOTHING = "nothing"


class AdviceCause(StrEnum):
    """Why something is advised; a model that can't be loaded carries its ``LoadCause``."""

    HEAT_CRITICAL = "heat_critical"
    TTL = "ttl"
    GIVE_WAY = "give_way"  # memory beside ours has grown
    BACKLOG = "backlog"
    MORE_ROOM = "more_room"
    UNKNOWN_READINGS = "unknown_readings"  # what is not known can't be called well
    ALL_WELL = "all_well"


NEAREST_FIRST: tuple[Cause, ...] = (
    Cause.UNPROBED,
    Cause.CLAIMED_BUSY,
    Cause.MODEL_BUSY,
    Cause.GPU_BUSY,
    Cause.KV_FULL,
    Cause.SATURATED,
    Cause.NAME_UNKNOWN,
    Cause.BREAKER_OPEN,
    Cause.HEAT_CRITICAL,
    Cause.MEMORY_CRITICAL,
    Cause.MEMORY_FULL,
    Cause.DEADLINE,
    Cause.NOT_RESIDENT,
    Cause.CONTEXT_UNKNOWN,
    Cause.CONTEXT_TOO_SMALL,
    Cause.NOT_SERVING,
)
"""Obstacles from the one that passes by itself soonest to the one that never does."""
