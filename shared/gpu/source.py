"""What a source of GPU readings gives, and how it fails; None stands for unknown, never for zero."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from shared.errors import OrchestratorError

BYTES_PER_MB = 2**20


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU. Its memory is unknown where the driver can't tell (WSL2, some containers)."""

    pid: int | None
    memory_mb: float | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment; memory in MB of 2^20 bytes.

    ``clocks_event_reasons`` is NVML's bit mask of why clocks are held down; ``thermal_slowdown`` says whether
    one of those reasons is heat, ``power_capped`` whether one is power (normal under full load).
    ``processes`` is None where they can't be listed. ``unread`` says of readings that are missing why, as far
    as the source knows: ``not_supported`` by this card, ``not_in_driver``, ``no_permission``,
    ``nvml_error_<number>``.
    """

    index: int
    uuid: str | None = None
    name: str | None = None
    memory_total_mb: float | None = None
    memory_free_mb: float | None = None
    gpu_utilization_percent: float | None = None
    temperature_c: float | None = None
    power_draw_w: float | None = None
    power_limit_w: float | None = None
    fan_percent: float | None = None
    clocks_event_reasons: int | None = None
    thermal_slowdown: bool | None = None
    power_capped: bool | None = None
    processes: tuple[GpuProcess, ...] | None = None
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def memory_used_mb(self) -> float | None:
        """Total minus free: newer forms of NVML's ``used`` leave out what the driver reserves."""
        if self.memory_total_mb is None or self.memory_free_mb is None:
            return None
        return self.memory_total_mb - self.memory_free_mb


class Cause(StrEnum):
    """Why there are no readings."""

    LIBRARY_MISSING = "library_missing"  # no NVIDIA driver is installed
    NO_DRIVER = "no_driver"  # installed, but not running, or of another version than its library
    LOST = "lost"  # every card fell off the bus or needs a reset
    NOT_ANSWERING = "not_answering"
    UNREADABLE = "unreadable"  # what answers is no source of GPU readings


class GpuUnavailable(OrchestratorError):
    """There are no readings now; the next call may bring some. ``cause`` is for programs."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(f"{cause.value}: {detail}")
        self.cause = cause
        self.detail = detail


class GpuSource(Protocol):
    """Where readings come from; one reader at a time."""

    @property
    def name(self) -> str:
        """What the samples carry as ``source``: ``nvml`` or ``simulated``."""

    @property
    def simulated(self) -> bool:
        """Whether the GPUs are made up."""

    async def read(self) -> list[GpuReading]:
        """Every GPU that can be read now; raises ``GpuUnavailable``."""

    async def aclose(self) -> None:
        """Let go of the driver; returns in time also where the driver hangs."""
