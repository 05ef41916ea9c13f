"""What the decision core sees and says: frozen values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.config import MemoryThresholds, ThermalThresholds
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a decision depends on."""

    models: Mapping[str, Model]
    gpus: Mapping[str, Gpu]
    rules: Rules = field(default_factory=Rules)
    busy: frozenset[str] = frozenset()  # models whose claim was answered BUSY since the snapshot was taken


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
class Decision:
    """What to do with one request, and why.

    ``code`` is stable for a kind of outcome; a hold is written again only when its code changes.
    ``limit`` and ``gpu_limits`` (GPU id -> most in flight) are what the claim must re-check.
    ``retry_in_ms`` is an estimate of when asking again makes sense, None if nothing tells.
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
