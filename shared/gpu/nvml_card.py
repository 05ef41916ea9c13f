"""What one card tells through NVML: each call on its own, an older one where the driver lacks the newer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml
from loguru import logger

from shared.gpu.source import BYTES_PER_MB, GpuProcess, GpuReading

DRIVER_GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
CARD_GONE = frozenset(
    {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND}
)
_GONE = DRIVER_GONE | CARD_GONE
_NOT_THERE = frozenset({pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH})
"""What a driver answers to a call that is newer than itself."""

_THERMAL_SLOWDOWN = 0x08 | 0x20 | 0x40
"""Hardware slowdown, software and hardware thermal slowdown (nvml.h, nvmlClocksEventReasons)."""
_POWER_CAPPED = 0x04 | 0x80
"""Software power cap and hardware power brake (the same)."""

# Newer names first: drivers up to R550 lack the first of each pair, CUDA 14 drops the second.
_TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_PROCESSES = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")

_NOT_IN_DRIVER = "not_in_driver"
_WORDS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: "not_supported",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call said; where ``value`` is None, ``why`` there is none."""

    value: Any
    why: str | None = None


class Asker:
    """Calls NVML functions; remembers which ones this driver lacks, and says each trouble once."""

    def __init__(self) -> None:
        self._absent: set[str] = set()
        self._said: set[tuple[str, str]] = set()

    def ask(self, handle: Any, *names: str, args: tuple[int, ...] = ()) -> Answer:
        """The answer of the first of these functions that has one.

        Raises ``NVMLError`` where the card or the driver is gone.
        """
        why = _NOT_IN_DRIVER
        for name in names:
            call: Callable[..., Any] | None = None if name in self._absent else getattr(pynvml, name, None)
            if call is None:
                continue
            try:
                return Answer(call(handle, *args))
            except pynvml.NVMLError as error:
                if error.value in _GONE:
                    raise
                if error.value in _NOT_THERE:
                    self._absent.add(name)
                else:
                    why = _WORDS.get(error.value, f"nvml_error_{error.value}")
        self._say_once(names[0], why)
        return Answer(None, why)

    def _say_once(self, name: str, why: str) -> None:
        if (name, why) not in self._said:
            self._said.add((name, why))
            expected = why in ("not_supported", _NOT_IN_DRIVER)
            logger.log("DEBUG" if expected else "WARNING", "{}: {}: unknown from now on", name, why)


def read_card(asker: Asker, handle: Any, index: int, uuid: str | None, name: str | None) -> GpuReading:
    """One reading of a card; raises ``NVMLError`` where it or the driver is gone."""
    answers = {
        "memory": asker.ask(handle, "nvmlDeviceGetMemoryInfo"),
        "gpu_utilization_percent": asker.ask(handle, "nvmlDeviceGetUtilizationRates"),
        "temperature_c": asker.ask(handle, *_TEMPERATURE, args=(pynvml.NVML_TEMPERATURE_GPU,)),
        "power_draw_w": asker.ask(handle, "nvmlDeviceGetPowerUsage"),
        "power_limit_w": asker.ask(handle, "nvmlDeviceGetEnforcedPowerLimit"),
        "fan_percent": asker.ask(handle, "nvmlDeviceGetFanSpeed"),
        "clocks_event_reasons": asker.ask(handle, *_REASONS),
        "processes": _processes(asker, handle),
    }
    memory, rates = answers["memory"].value, answers["gpu_utilization_percent"].value
    reasons = answers["clocks_event_reasons"].value
    return GpuReading(
        index=index,
        uuid=uuid,
        name=name,
        memory_total_mb=None if memory is None else memory.total / BYTES_PER_MB,
        memory_free_mb=None if memory is None else memory.free / BYTES_PER_MB,
        gpu_utilization_percent=None if rates is None else float(rates.gpu),
        temperature_c=answers["temperature_c"].value,
        power_draw_w=_watts(answers["power_draw_w"].value),
        power_limit_w=_watts(answers["power_limit_w"].value),
        fan_percent=answers["fan_percent"].value,
        clocks_event_reasons=reasons,
        thermal_slowdown=None if reasons is None else bool(reasons & _THERMAL_SLOWDOWN),
        power_capped=None if reasons is None else bool(reasons & _POWER_CAPPED),
        processes=answers["processes"].value,
        unread=tuple((reading, answer.why) for reading, answer in answers.items() if answer.why is not None),
    )


def _processes(asker: Asker, handle: Any) -> Answer:
    compute, graphics = (asker.ask(handle, name) for name in _PROCESSES)
    if compute.value is None:
        return compute
    used: dict[int, int | None] = {}
    for item in (item for listed in (compute, graphics) for item in listed.value or ()):
        # The two lists overlap, and one may know a size that the other doesn't. A use of 0 is what some
        # containers report for "can't tell".
        used[item.pid] = item.usedGpuMemory or used.get(item.pid)
    return Answer(
        tuple(
            GpuProcess(pid, None if size is None else size / BYTES_PER_MB)
            for pid, size in sorted(used.items())
        )
    )


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
