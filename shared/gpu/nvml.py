"""GPU readings through NVML: every card, each call on its own; a lost driver or card is found again."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pynvml
from loguru import logger
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from shared.gpu.nvml_card import CARD_GONE, DRIVER_GONE, Asker, read_card
from shared.gpu.source import Cause, GpuReading, GpuUnavailable
from shared.gpu.thread import call_in_daemon_thread, ended

PATIENCE_S = 5.0
"""A read takes about a millisecond; a driver silent for this long hangs."""
_CLOSE_S = 1.0
_REOPEN_FIRST_S = 1.0
_REOPEN_MOST_S = 60.0


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
        self._pending: Future[list[GpuReading]] | None = None
        self._cards: list[_Card] | None = None
        self._indices: dict[str, int] = {}
        self._lost: dict[int, str] = {}
        self._unopened: dict[int, str] = {}
        self._reopen_in_s = _REOPEN_FIRST_S
        self._reopen_at = 0.0
        self._asker = Asker()

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
            await ended(closing, _CLOSE_S)

    async def _settled(self, pending: Future[list[GpuReading]]) -> Future[list[GpuReading]]:
        if not await ended(pending, self._patience_s):
            raise GpuUnavailable(Cause.NOT_ANSWERING, f"NVML gave no answer for {self._patience_s:g} s")
        self._pending = None
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
                readings.append(read_card(self._asker, card.handle, card.index, card.uuid, card.name))
            except pynvml.NVMLError as error:
                if error.value in DRIVER_GONE:
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
            uuid = self._asker.ask(handle, "nvmlDeviceGetUUID").value
            name = self._asker.ask(handle, "nvmlDeviceGetName").value
        except pynvml.NVMLError as error:
            if error.value not in CARD_GONE:
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
