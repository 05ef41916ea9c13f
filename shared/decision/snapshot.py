"""What the decision core sees and says: frozen values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.config import MemoryThresholds, ThermalThresholds
from shared.decision.memo import Memo
from shared.states import Action, BackendType, Mode, Pressure, Residence, Thermal


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of the decision model that the configuration can change."""

    memory: MemoryThresholds = field(default_factory=MemoryThresholds)
    thermal: ThermalThresholds = field(default_factory=ThermalThresholds)
    reserve_gb: float = 3.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as last read; None = unknown, never zero. Memory in MB of 2^20 bytes."""

    id: str  # "<host>/<index>"
    pressure: Pressure = Pressure.UNKNOWN
    full: bool = False  # at or above the critical threshold (0.95): nothing is admitted
    thermal: Thermal = Thermal.UNKNOWN
    level_seq: int = 0  # rises with every change of level: a claim is refused when it moved on
    effective_utilization: float | None = None  # 0..1, what the pressure level was computed on
    memory_total_mb: float | None = None
    memory_used_mb: float | None = None
    temperature_c: float | None = None
    power_draw_w: float | None = None
    sample_age_ms: float | None = None  # None: no reading, or its monitor is gone
    in_flight: int = 0
    interval_ms: float = 1000.0  # between two readings
    reserve_gb: float | None = None  # left free on this card; None: as the rules say
    managed_mb: float | None = None  # what our backends' processes hold, where the driver can tell
    level_age_ms: float | None = None  # since the reading that the levels stand on; None: nobody knows


@dataclass(frozen=True, slots=True)
class Model:
    """One registration and what has been measured of it; None = unknown.

    Speeds: ``seconds_per_prompt_token`` and ``seconds_per_output_token`` are moving averages of our own jobs.
    """

    name: str
    backend: BackendType
    url: str
    port: int | None
    upstream_name: str
    serves: tuple[str, ...]
    agent_types: tuple[str, ...] = ()
    vram_gb: float | None = None
    tokens_per_second: float | None = None
    pin: bool = False
    context_tokens: int = 2048
    context_known: bool = True  # False: neither registered nor probed yet, so nothing is refused by it
    slots: int = 1
    gpus: tuple[str, ...] = ()  # ids; empty: its GPU is unknown or unmonitored
    residence: Residence = Residence.UNKNOWN
    in_flight: int = 0
    backend_running: int | None = None
    backend_waiting: int | None = None
    probe_in_flight: int | None = None  # our own in flight when the backend's counts were taken
    kv_use: float | None = None  # 0..1
    samples: int = 0  # finished jobs that the averages stand on
    avg_latency_ms: float | None = None
    seconds_per_prompt_token: float | None = None
    seconds_per_output_token: float | None = None
    avg_output_tokens: float | None = None
    failure_count: int = 0
    failure_ema: float = 0.0  # 0..1, already decayed to now
    breaker_open_for_ms: float = 0.0  # > 0: shut until then
    breaker_half_open: bool = False  # one probe at a time
    saturated_for_ms: float = 0.0  # > 0: it said 429 or 503 and asked to wait
    name_unknown_for_ms: float = 0.0  # > 0: its server knows no model by ``upstream_name``
    loadable_on: tuple[str, ...] = ()  # ids of the GPUs that it may be loaded on; empty: none is known
    rate_10min: float | None = None  # arrivals per second over about the last 10 minutes; None: never used
    rate_6h: float | None = None  # the same over about 6 hours
    idle_s: float | None = None  # since a request last began or ended
    ttl_s: float | None = None  # idle longer than this: may be unloaded
    footprint_mb: float | None = None  # measured when it was last loaded
    footprint_error_mb: float | None = None  # 95th percentile of measured minus predicted
    load_seconds: float | None = None  # moving average of measured loads
    loaded_ago_s: float | None = None  # since it was loaded by a plan of ours
    load_gain: float | None = None  # the gain that this plan stood on
    host: str | None = None  # the GPU host that it is registered for; None: any
    unprobed: bool = False  # no monitor has probed it for longer than probes may take
    unprobed_ms: float | None = None  # since its last probe, else since it was registered; None: nobody knows


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for one target (a model's name or ``auto:<agent type>``); None = unknown."""

    target: str
    waiting: int
    head_age_s: float | None = None
    expected_wait_s: float | None = None  # until one that comes now is served, if nothing is loaded


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a decision depends on."""

    models: Mapping[str, Model]
    gpus: Mapping[str, Gpu]
    rules: Rules = field(default_factory=Rules)
    busy: frozenset[str] = frozenset()  # models whose claim was answered BUSY since the snapshot was taken
    backlogs: tuple[Backlog, ...] = ()
    memo: Memo = field(default_factory=dict, init=False, compare=False, repr=False)
    """What follows from the fields above, worked out once for all the decisions of a pass; its lasting part
    follows from them whatever is in flight.
    """


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, as far as routing cares."""

    model: str | None = None
    agent_type: str | None = None
    prompt_tokens: int = 1
    max_tokens: int = 512
    min_context_tokens: int = 0
    prefer_llama_cpp: bool = False
    priority: int = 5
    mode: Mode | None = None
    fallback: bool = True
    deadline_in_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The factors of one model's score; their product is ``score``, lower is better."""

    score: float
    load: float
    speed: float
    failures: float
    affinity: float
    mode: float
    size: float
    busy: int
    limit: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a model is not a candidate: a stable code and a sentence with the numbers."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Victim:
    """An idle model that a plan unloads; ``value`` is what keeping it is worth (section 5 of the model)."""

    model: str
    frees_mb: float
    value: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A load, after evictions where it has victims. Memory in MB; nothing here is carried out yet.

    ``available_mb`` and ``utilization`` are those after the evictions and after the load; ``gain`` is in
    seconds of waiting.
    """

    model: str
    gpu: str
    needs_mb: float
    available_mb: float
    utilization: float
    load_seconds: float
    gain: float = 0.0
    victims: tuple[Victim, ...] = ()
    wakes: bool = False

    @property
    def frees_mb(self) -> float:
        """What the evictions give back."""
        return sum(victim.frees_mb for victim in self.victims)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a model can't be loaded now: a stable code and a sentence that says what would change it."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one request, and why.

    ``code`` is stable for a kind of outcome; a hold is written again only when its code changes.
    ``limit`` and ``gpu_limits`` (GPU id -> most in flight) are what the claim must re-check.
    ``retry_in_ms`` is an estimate of when asking again makes sense, None if nothing tells. ``plan`` is the
    load that a hold waits for, where one is possible.
    """

    action: Action
    code: str
    reason: str
    model: Model | None = None
    estimated_duration_ms: float | None = None
    limit: int = 0
    gpu_limits: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    retry_in_ms: float | None = None
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """Something worth doing that nobody does yet, and why. Memory in MB, times and gain in seconds.

    ``victims`` are the models that would be unloaded, ``gpu`` is where it happens and ``to_gpu`` where a
    model would go. ``changes`` says what it would bring. None = does not apply or unknown.
    """

    action: str
    code: str
    reason: str
    changes: str
    model: str | None = None
    gpu: str | None = None
    to_gpu: str | None = None
    victims: tuple[str, ...] = ()
    frees_mb: float | None = None
    needs_mb: float | None = None
    gain: float | None = None
    load_seconds: float | None = None
    utilization: float | None = None  # of the GPU where it happens, or where a model would go, afterwards
    plan: Plan | None = None
