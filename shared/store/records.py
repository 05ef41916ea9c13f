"""What goes into and comes out of the store, as typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shared.registry import Registration
from shared.states import JobState


class SubmitOutcome(StrEnum):
    ACCEPTED = "ACCEPTED"
    STARTED = "STARTED"  # accepted, and its first attempt started
    DUPLICATE = "DUPLICATE"  # same idempotency key, same body: the first job answers
    MISMATCH = "MISMATCH"  # same idempotency key, other body
    FULL = "FULL"
    LIMITED = "LIMITED"  # a limit of the API key that it came with is reached


class AdmitOutcome(StrEnum):
    KNOWN = "KNOWN"
    CREATED = "CREATED"
    DEAD = "DEAD"


class ClaimOutcome(StrEnum):
    CLAIMED = "CLAIMED"
    GONE = "GONE"  # ended, or somebody else's
    EXPIRED = "EXPIRED"
    BUSY = "BUSY"  # a limit was reached meanwhile
    MOVED = "MOVED"  # a GPU changed its level meanwhile
    ABANDONED = "ABANDONED"  # ended: the api that held its client is gone
    SKIPPED = "SKIPPED"  # one ahead of it in its queue was refused in the same call
    AWAY = "AWAY"  # that api was not heard of, but nobody could be: ask again in a moment


class HoldOutcome(StrEnum):
    HELD = "HELD"
    SAME = "SAME"
    GONE = "GONE"


class RejectOutcome(StrEnum):
    REJECTED = "REJECTED"
    GONE = "GONE"


class RenewOutcome(StrEnum):
    RENEWED = "RENEWED"
    CANCEL = "CANCEL"
    STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Taken:
    """An attempt that is this router's now: ``body`` goes to the backend."""

    deadline_in_ms: int
    body: str


class FinishOutcome(StrEnum):
    FINISHED = "FINISHED"
    STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Finished:
    """``waiting``: how many jobs waited when this one's end was recorded."""

    outcome: FinishOutcome
    waiting: int


class FailOutcome(StrEnum):
    QUEUED = "QUEUED"
    FAILED = "FAILED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    STALE = "STALE"


class CancelOutcome(StrEnum):
    CANCELLED = "CANCELLED"
    REQUESTED = "REQUESTED"
    ENDED = "ENDED"
    UNKNOWN = "UNKNOWN"


class FailKind(StrEnum):
    RETRY = "retry"
    RELEASED = "released"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ModelFailure(StrEnum):
    NONE = "none"
    FAILED = "failed"
    REFUSED = "refused"  # opens the breaker at once


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What the API key named ``key`` may have; None: any number.

    ``in_flight``: jobs that have not ended; ``queued``: those of them that wait; ``per_minute``: jobs that
    were accepted in any 60 s.
    """

    key: str
    in_flight: int | None = None
    queued: int | None = None
    per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated job on its way in: flat fields of its hash, and the backend's request as JSON.

    ``attached_to``: the ``Presence.holder`` of the api on whose connection its client waits; such a job is
    granted to that api, its ``body`` is not stored, and it never runs without that api.
    """

    id: str
    target: str
    boost_ms: int
    deadline_in_ms: int
    fields: Mapping[str, str]
    body: bytes
    caller: str | None = None
    attached_to: str | None = None
    limits: KeyLimits | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """``limit``: what was reached, a field of ``KeyLimits``; ``again_ms``: to wait, 0 if unknown.

    ``now_ms``: Redis' time when it was. ``position`` in its queue (1 is next) and the queue's ``hold`` (JSON)
    are those of a job that this very call queued, unless it is attached; None and "" else.
    """

    outcome: SubmitOutcome
    job_id: str
    ended_per_s: float = 0.0
    limit: str = ""
    again_ms: int = 0
    now_ms: int = 0
    position: int | None = None
    hold: str = ""


@dataclass(frozen=True, slots=True)
class GpuClaim:
    """A GPU's share of a claim: most in flight on it, and the level that the decision saw."""

    id: str
    limit: int
    level_seq: int


@dataclass(frozen=True, slots=True)
class ClaimOrder:
    """One decision to be carried out. ``nonce`` makes its replay answer the same attempt.

    ``grant``: flat fields for whoever is told to run it; ``registration``: the model's as it is stored;
    ``alone``: the ``queued_event`` of a job that was decided on by its request entry: the claim is refused
    unless it is that very job, never started, and nobody else waits.
    """

    job_id: str
    nonce: str
    router: str
    lease_ms: int
    model: str
    limit: int
    gpus: tuple[GpuClaim, ...]
    fields: Mapping[str, str]
    decision: tuple[str, ...]
    grant: tuple[str, ...] = ()
    registration: str = ""
    alone: str = ""


@dataclass(frozen=True, slots=True)
class Claimed:
    outcome: ClaimOutcome
    attempt: int = 0
    deadline_ms: int = 0
    body: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended without success. ``charge`` counts against ``max_attempts``.

    ``saturated_ms``, ``name_unknown_ms``: for how long the model rests, since its server is full, or does not
    know it by the name that we sent; a name that its registration says fails the job instead.
    """

    kind: FailKind
    error_type: str
    detail: str
    delay_ms: int = 0
    charge: bool = False
    model_failure: ModelFailure = ModelFailure.NONE
    saturated_ms: int = 0
    name_unknown_ms: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """A waiting job as the scheduler sees it."""

    job_id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TargetView:
    target: str
    waiting: int
    hold: str
    heads: tuple[Head, ...]


@dataclass(frozen=True, slots=True)
class ModelView:
    """``stored``: the registration's JSON as Redis has it."""

    registration: Registration
    fields: Mapping[str, str]
    stored: str = ""


@dataclass(frozen=True, slots=True)
class GpuView:
    id: str
    sample: Mapping[str, str]
    level: Mapping[str, str]
    in_flight: int


@dataclass(frozen=True, slots=True)
class View:
    """One consistent look at queues, models and GPUs, all read at ``now_ms`` (Redis time)."""

    now_ms: int
    targets: tuple[TargetView, ...]
    models: tuple[ModelView, ...]
    gpus: tuple[GpuView, ...]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as stored; ``fields`` is its hash."""

    job_id: str
    fields: Mapping[str, str]
    position: int | None = None
    hold: str = ""
    result: str | None = None

    @property
    def state(self) -> JobState:
        return JobState(self.fields["state"])


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A process that says it lives. Times in ms of Redis time."""

    instance: str
    service: str
    boot: str
    host: str
    heartbeat_ms: int
    version: str
    address: str
    age_ms: int


@dataclass(frozen=True, slots=True)
class StreamEntry:
    id: str
    fields: Mapping[str, str]
