"""The sections of the settings file, but for the api's: keys with range, unit, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from shared.api_settings import Section
from shared.units import SECONDS, TOKENS, Bytes, Gigabytes, Port, Seconds, Unit

Ratio = Annotated[float, Field(gt=0, le=1), Unit("share")]
Celsius = Annotated[float, Field(gt=0, le=150), Unit("°C")]
Entries = Annotated[int, Field(ge=100), Unit("entries")]


class RedisSettings(Section):
    """Where Redis is, 7.0 or newer, with `maxmemory-policy noeviction`."""

    url: Annotated[str, StringConstraints(pattern=r"^(rediss?|unix)://")] | None = Field(
        None, description="A Redis of yours; left out: the one that `make up` starts on 127.0.0.1."
    )
    namespace: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_{}.-]{1,64}$")] = Field(
        "orch", description="What every key in Redis begins with; services that work together have the same."
    )
    embedded_port: Port = Field(
        6390, description="Port of the Redis that `make up` starts; unused with `redis.url`."
    )

    @property
    def effective_url(self) -> str:
        return self.url or f"redis://127.0.0.1:{self.embedded_port}/0"


class GpuSettings(Section):
    """How GPUs and backends are watched."""

    source: Literal["auto", "nvml", "simulated", "none"] = Field(
        "auto",
        description="Who reads the GPUs; `auto`: the simulator for simulated models, else NVML if there.",
    )
    reserve_gb: Gigabytes = Field(
        3.0, description="Memory of each card that no model is advised to be loaded into."
    )
    interval_s: Annotated[float, Field(ge=0.1, le=60), SECONDS] = Field(
        1.0, description="Time between two readings of a GPU, and between two probes of a backend."
    )


class GpuOverride(Section):
    """What differs for one card: `gpus: [{id: 0, reserve_gb: 1.0}]`."""

    id: Annotated[str | int, Unit("index or UUID")] = Field(
        description="The card: its index or UUID as NVML says them, or `<host>/<index>`."
    )
    reserve_gb: Gigabytes | None = Field(None, description="Instead of `gpu.reserve_gb` on this card.")


class BackendSettings(Section):
    """Where backends are."""

    host: str = Field(
        "127.0.0.1",
        description="Completes registrations given by port alone, and the simulator's control port.",
    )


class RouterSettings(Section):
    """How jobs are carried to the backends, and how long is waited for what."""

    lease_s: Annotated[float, Field(ge=0.5, le=600), SECONDS] = Field(
        30.0,
        description="How long a job stays with a router that gives no sign of life; renewed each quarter.",
    )
    poll_s: Seconds = Field(
        1.0, description="Longest time between two looks of a router at the queues, when nothing wakes it."
    )
    max_in_flight: Annotated[int, Field(ge=1, le=10_000), Unit("jobs")] = Field(
        256, description="Most jobs that one router process runs at once."
    )
    connect_timeout_s: Seconds = Field(3.0, description="Longest wait for a connection to a backend.")
    idle_timeout_s: Seconds = Field(
        60.0, description="Longest silence of a backend, before or between bytes."
    )
    drain_s: Annotated[float, Field(ge=0, le=3600), SECONDS] = Field(
        8.0, description="How long running jobs may go on after SIGTERM, before another router gets them."
    )
    retry_base_s: Seconds = Field(
        0.5, description="Before a retry passes a random time up to this, doubled with every attempt."
    )
    retry_cap_s: Seconds = Field(30.0, description="Longest that this random time gets.")


class QueueSettings(Section):
    """Jobs that wait."""

    bound: Annotated[int, Field(ge=1), Unit("jobs")] = Field(
        10_000, description="Most jobs that wait, all queues together; one more is refused with 429."
    )
    priority_step_s: Annotated[float, Field(ge=0, le=86_400), SECONDS] = Field(
        30.0, description="How much waiting one step of priority is worth; 0: priorities don't count."
    )


class JobSettings(Section):
    """What a job has that does not say otherwise, and how large and old one gets."""

    max_tokens: Annotated[int, Field(ge=1), TOKENS] = Field(
        512, description="Longest answer of a job that names no `max_tokens`."
    )
    priority: Annotated[int, Field(ge=0, le=9), Unit("9 = most urgent")] = Field(
        5, description="Priority of a job that names none."
    )
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86_400), SECONDS] = Field(
        600.0,
        description="Time from submission to the end of a job that names no `deadline_s`; it then expires.",
    )
    max_attempts: Annotated[int, Field(ge=1, le=100), Unit("attempts")] = Field(
        3, description="Charged attempts of a job that names no `max_attempts`; it is dead after the last."
    )
    retention_s: Annotated[float, Field(ge=1, le=400 * 86_400), SECONDS] = Field(
        86_400.0, description="How long a job and its result can be read after its end."
    )
    max_request_bytes: Bytes = Field(
        8 * 2**20, description="Largest request of a job (prompt or messages, parameters), as JSON."
    )
    max_result_bytes: Bytes = Field(
        8 * 2**20,
        description="Longest text that a backend may generate for a job; a longer one fails the attempt.",
    )


class HistorySettings(Section):
    """Entries kept of each stream in Redis; somewhat more remain, since Redis trims whole nodes of 100."""

    requests: Entries = Field(10_000, description="Of `orch:jobs:requests`, the jobs handed in.")
    events: Entries = Field(50_000, description="Of `orch:jobs:events`, what happened to jobs.")
    decisions: Entries = Field(10_000, description="Of `orch:decisions`, what was decided and why.")
    gpu_samples: Entries = Field(
        10_000,
        description="Of `orch:gpu:samples`, the readings of the GPUs; `GET /v1/gpu/history` reads them.",
    )
    backend_samples: Entries = Field(
        10_000, description="Of `orch:backend:samples`, the probes of the backends."
    )
    dead: Entries = Field(10_000, description="Of `orch:jobs:dead`, what could not be read or kept failing.")
    control: Entries = Field(10_000, description="Of `orch:control`, changes of the registry and advice.")


class MemoryThresholds(Section):
    """Upper bounds of the memory levels, as shares of a card's memory; they must rise."""

    low: Ratio = Field(0.50, description="Below it the level is low.")
    normal: Ratio = Field(0.70, description="Below it the level is normal.")
    high: Ratio = Field(
        0.85,
        description="Below it the level is high; from it on critical: only the smallest model serves.",
    )
    critical: Ratio = Field(0.95, description="From it on nothing is sent to the card.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.normal < self.high < self.critical:
            raise ValueError("must rise: low < normal < high < critical")
        return self


class ThermalThresholds(Section):
    """Bounds of the heat levels of a card; they must rise."""

    normal: Celsius = Field(
        65.0, description="Below it heat is normal; from it on 90 % of the slots are used."
    )
    warning: Celsius = Field(
        80.0, description="Above it the card counts as throttling: half of the slots are used."
    )
    throttling: Celsius = Field(85.0, description="Above it heat is critical: nothing is sent to the card.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.normal < self.warning < self.throttling:
            raise ValueError("must rise: normal < warning < throttling")
        return self


class SimulatorSettings(Section):
    """The simulated GPU host, used where no models are configured or where they say `simulated`."""

    host: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(
        "127.0.0.1",
        description="The IPv4 address that it listens on. Nothing there asks for a key: elsewhere than on "
        "loopback only in a network of one's own, such as that of docker-compose.yml.",
    )
    port: Port = Field(8090, description="Control port: state of the simulated GPU, faults, speeds.")
    gpu_name: str = Field(
        "Simulated NVIDIA GeForce RTX 3090", description="What the simulated GPU calls itself."
    )
    memory_total_gb: Annotated[float, Field(gt=0), Unit("GB")] = Field(
        24.0, description="Memory of the simulated GPU."
    )
    foreign_gb: Gigabytes = Field(
        0.6, description="Memory in use by something that is no model, such as a desktop."
    )
    load_s: Annotated[float, Field(ge=0), SECONDS] = Field(
        1.0, description="Time that a simulated model takes to load, before `simulator.speedup`."
    )
    speedup: Annotated[float, Field(gt=0), Unit("times")] = Field(
        1.0, description="Divides every simulated duration."
    )


class LogSettings(Section):
    """The log of each service, on its stderr and in a file."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least severe that is logged."
    )
    format: Literal["auto", "text", "json"] = Field(
        "auto",
        description="Of stderr; `auto`: text on a terminal, elsewhere a JSON object a line. Files are text.",
    )
    dir: str = Field(
        "data/logs",
        description="Where each service has its file, 10 MB and one predecessor; relative to the working "
        "directory.",
    )
