"""GPU readings through NVML: every card, each call on its own; a lost driver or card is found again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml
from loguru import logger
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from shared.gpu.source import BYTES_PER_MB, Cause, GpuProcess, GpuReading, GpuUnavailable
from shared.gpu.thread import call_in_daemon_thread

PATIENCE_S = 5.0
"""A read takes about a millisecond; a driver silent for this long hangs."""
_CLOSE_S = 1.0
_REOPEN_FIRST_S = 1.0
_REOPEN_MOST_S = 60.0

_THERMAL_SLOWDOWN = 0x08 | 0x20 | 0x40
"""Hardware slowdown, software and hardware thermal slowdown (nvml.h, nvmlClocksEventReasons)."""

_DRIVER_GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
_CARD_GONE = frozenset(
    {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND}
)
_GONE = _DRIVER_GONE | _CARD_GONE
_NOT_THERE = frozenset({pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH})
"""What a driver answers to a call that is newer than itself."""

# Newer names first: drivers up to R550 lack the first of each pair, CUDA 14 drops the second.
_TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_PROCESSES = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


@dataclass(frozen=True, slots=True)
class _Card:
    """``index`` is the one that it was first seen under."""

    index: int
    handle: Any
    uuid: str | None
    name: str | None


class _DriverLost(Exception):
    """The driver went away under an open library: open it again."""


class NvmlSource:
    """Reads every GPU of this machine."""

    name = "nvml"
    simulated = False

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        """``patience_s`` is how long ``read`` waits for the driver."""
        self._patience_s = patience_s
        self._pending: asyncio.Future[list[GpuReading]] | None = None
        self._cards: list[_Card] | None = None
        self._indices: dict[str, int] = {}
        self._lost: dict[int, str] = {}
        self._unopened: dict[int, str] = {}
        self._reopen_in_s = _REOPEN_FIRST_S
        self._reopen_at = 0.0
        self._absent: set[str] = set()
        self._said: set[tuple[str, int]] = set()

    async def read(self) -> list[GpuReading]:
        """Every GPU that answers; one that is lost is left out until it is back.

        Raises ``GpuUnavailable``: no library, no driver, all cards lost, or no answer within ``patience_s``.
        """
        if self._pending is not None:
            # Never a second call into a driver that hangs; and what it says at last is no reading of now.
            await self._settled(self._pending)
        self._pending = call_in_daemon_thread(self._read, "nvml")
        pending = await self._settled(self._pending)
        return pending.result()

    async def aclose(self) -> None:
        """Shut NVML down, unless it hangs."""
        if self._pending is None and self._cards is not None:
            closing = call_in_daemon_thread(self._close, "nvml-close")
            await asyncio.wait({closing}, timeout=_CLOSE_S)

    async def _settled(self, pending: asyncio.Future[list[GpuReading]]) -> asyncio.Future[list[GpuReading]]:
        done, _ = await asyncio.wait({pending}, timeout=self._patience_s)
        if not done:
            raise GpuUnavailable(Cause.NOT_ANSWERING, f"NVML gave no answer for {self._patience_s:g} s")
        self._pending = None
        pending.exception()
        return pending

    def _read(self) -> list[GpuReading]:
        # Two attempts: the second one on a library opened anew. After that the next reading tries again.
        retrying = Retrying(
            stop=stop_after_attempt(2), retry=retry_if_exception_type(_DriverLost), reraise=True
        )
        try:
            return retrying(self._read_once)
        except _DriverLost as error:
            raise GpuUnavailable(Cause.NO_DRIVER, str(error)) from error

    def _read_once(self) -> list[GpuReading]:
        if self._cards is None:
            self._cards = self._open()
        readings: list[GpuReading] = []
        lost = dict.fromkeys(self._indices.values(), "no longer listed") | self._unopened
        for card in self._cards:
            try:
                readings.append(self._read_card(card))
            except pynvml.NVMLError as error:
                if error.value in _DRIVER_GONE:
                    self._close()
                    raise _DriverLost(str(error)) from error
                lost[card.index] = str(error)
            else:
                lost.pop(card.index, None)
        self._note_lost(lost)
        if lost and not readings:
            raise GpuUnavailable(Cause.LOST, "; ".join(f"GPU {index}: {why}" for index, why in lost.items()))
        return readings

    def _note_lost(self, lost: dict[int, str]) -> None:
        """Say what changed, and open the library anew now and then: else a card may never come back."""
        for index in sorted(lost.keys() - self._lost.keys()):
            logger.warning("GPU {} is lost ({}): its last levels hold until it is back", index, lost[index])
        for index in sorted(self._lost.keys() - lost.keys()):
            logger.info("GPU {} is back", index)
        if lost and not self._lost:
            self._reopen_in_s = _REOPEN_FIRST_S
            self._reopen_at = time.monotonic() + self._reopen_in_s
        elif lost and time.monotonic() >= self._reopen_at:
            self._close()
            self._reopen_in_s = min(_REOPEN_MOST_S, 2 * self._reopen_in_s)
            self._reopen_at = time.monotonic() + self._reopen_in_s
        self._lost = lost

    def _open(self) -> list[_Card]:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            missing = error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
            raise GpuUnavailable(Cause.LIBRARY_MISSING if missing else Cause.NO_DRIVER, str(error)) from error
        self._unopened = {}
        try:
            cards = [self._card(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self._close()
            raise GpuUnavailable(Cause.NO_DRIVER, f"the GPUs can't be listed: {error}") from error
        return [card for card in cards if card is not None]

    def _card(self, nvml_index: int) -> _Card | None:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(nvml_index)
            uuid = self._ask(handle, "nvmlDeviceGetUUID")
            name = self._ask(handle, "nvmlDeviceGetName")
        except pynvml.NVMLError as error:
            if error.value not in _CARD_GONE:
                raise
            self._unopened[nvml_index] = str(error)
            return None
        return _Card(self._index_of(uuid, nvml_index), handle, uuid, name)

    def _index_of(self, uuid: str | None, nvml_index: int) -> int:
        """NVML counts anew when a card has fallen off the bus; here a card keeps the index it came with."""
        if uuid is None:
            return nvml_index
        if uuid not in self._indices:
            taken = set(self._indices.values())
            index = nvml_index if nvml_index not in taken else max(taken) + 1
            self._indices[uuid] = index
        return self._indices[uuid]

    def _close(self) -> None:
        self._cards = None
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            logger.debug("NVML not shut down: {}", error)

    def _read_card(self, card: _Card) -> GpuReading:
        memory = self._ask(card.handle, "nvmlDeviceGetMemoryInfo")
        rates = self._ask(card.handle, "nvmlDeviceGetUtilizationRates")
        reasons = self._ask(card.handle, *_REASONS)
        return GpuReading(
            index=card.index,
            uuid=card.uuid,
            name=card.name,
            memory_total_mb=None if memory is None else memory.total / BYTES_PER_MB,
            memory_free_mb=None if memory is None else memory.free / BYTES_PER_MB,
            gpu_utilization_percent=None if rates is None else float(rates.gpu),
            temperature_c=self._ask(card.handle, *_TEMPERATURE, args=(pynvml.NVML_TEMPERATURE_GPU,)),
            power_draw_w=_watts(self._ask(card.handle, "nvmlDeviceGetPowerUsage")),
            power_limit_w=_watts(self._ask(card.handle, "nvmlDeviceGetEnforcedPowerLimit")),
            fan_percent=self._ask(card.handle, "nvmlDeviceGetFanSpeed"),
            clocks_event_reasons=reasons,
            thermal_slowdown=None if reasons is None else bool(reasons & _THERMAL_SLOWDOWN),
            processes=self._processes(card),
        )

    def _processes(self, card: _Card) -> tuple[GpuProcess, ...] | None:
        lists = [self._ask(card.handle, name) for name in _PROCESSES]
        if all(listed is None for listed in lists):
            return None
        # The two lists overlap. A use of 0 is what some containers report for "can't tell".
        used = {item.pid: item.usedGpuMemory or None for listed in lists for item in listed or ()}
        return tuple(
            GpuProcess(pid, None if size is None else size / BYTES_PER_MB)
            for pid, size in sorted(used.items())
        )

    def _ask(self, handle: Any, *names: str, args: tuple[int, ...] = ()) -> Any:
        """The answer of the first of these calls that exists; None = this card can't tell.

        Raises ``NVMLError`` where the card or the driver is gone.
        """
        for name in names:
            call: Callable[..., Any] | None = None if name in self._absent else getattr(pynvml, name, None)
            if call is None:
                continue
            try:
                return call(handle, *args)
            except pynvml.NVMLError as error:
                if error.value in _GONE:
                    raise
                if error.value in _NOT_THERE:
                    self._absent.add(name)
                else:
                    self._say_once(name, error)
                    return None
        return None

    def _say_once(self, name: str, error: pynvml.NVMLError) -> None:
        if (name, error.value) not in self._said:
            self._said.add((name, error.value))
            expected = error.value == pynvml.NVML_ERROR_NOT_SUPPORTED
            logger.log("DEBUG" if expected else "WARNING", "{}: {}: unknown from now on", name, error)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
