"""Names that appear on the wire as values: job states, event types, levels, residence; each written once."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is; the last six are final except ``queued`` and ``running``."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # will never work: the backend or the router said so
    DEAD = "dead"  # tries used up
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # its deadline passed


FINAL_STATES: frozenset[JobState] = frozenset(JobState) - {JobState.QUEUED, JobState.RUNNING}


class JobEvent(StrEnum):
    """Transitions in ``orch:jobs:events``."""

    QUEUED = "job.queued"
    HELD = "job.held"
    STARTED = "job.started"
    RETRIED = "job.retried"
    REQUEUED = "job.requeued"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    DEAD = "job.dead"
    CANCEL_REQUESTED = "job.cancel_requested"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"


FINAL_EVENTS: frozenset[JobEvent] = frozenset(JobEvent(f"job.{state}") for state in FINAL_STATES)


class Pressure(StrEnum):
    """Memory pressure of one GPU (decision model, section 2)."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"
    UNKNOWN = "unknown"  # never read


class Thermal(StrEnum):
    """Heat level of one GPU (decision model, section 3)."""

    NORMAL = "normal"
    WARNING = "warning"
    THROTTLING = "throttling"
    CRITICAL = "critical"
    UNKNOWN = "unknown"  # never read; treated as normal, and said


class BackendType(StrEnum):
    """The two kinds of server that we speak to."""

    LLAMA_CPP = "llama_cpp"
    VLLM = "vllm"


class Residence(StrEnum):
    """Whether a model's server can answer now."""

    UNKNOWN = "unknown"  # never probed
    UNLOADED = "unloaded"
    LOADING = "loading"
    RESIDENT = "resident"
    DRAINING = "draining"
    UNLOADING = "unloading"
    SLEEPING = "sleeping"
    FAILED = "failed"


class Mode(StrEnum):
    """What a job is tuned for: the answer's latency, or throughput."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Action(StrEnum):
    """What a decision says."""

    DISPATCH = "dispatch"
    HOLD = "hold"
    REJECT = "reject"
