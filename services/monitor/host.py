"""What the monitor knows of its host: GPUs seen, models registered, which vLLM pool is on which GPU."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.decision.memory import MB_PER_GB
from shared.gpu.source import GpuReading
from shared.registry import Registration
from shared.states import BackendType, Residence


@dataclass(frozen=True, slots=True)
class Pool:
    """The memory that an awake vLLM server holds for ever. ``probed`` is False while its state is unknown."""

    model: str
    size_mb: float | None
    probed: bool


class HostView:
    """Shared by the GPU loop and the probes, which run in one event loop.

    ``gpus_tried`` is set after the first attempt to read the GPUs, ``models_tried`` after the first to read
    the registrations, whatever came of it.
    """

    def __init__(self, name: str, backends_host: str) -> None:
        self.name = name
        self.gpus_tried = asyncio.Event()
        self.models_tried = asyncio.Event()
        self._local_names = {"localhost", name.lower(), backends_host.lower()}
        self._uuids: dict[int, str | None] | None = None
        self._entries: dict[str, Registration] = {}
        self._awake: dict[str, bool] = {}

    def gpu_id(self, index: int) -> str:
        return f"{self.name}/{index}"

    def owns(self, entry: Registration) -> bool:
        """Whether this host's monitor probes that model."""
        return entry.host in (None, self.name)

    def saw_gpus(self, readings: Iterable[GpuReading]) -> None:
        """Remember these GPUs; one that is missing now still has its models."""
        seen = {reading.index: reading.uuid for reading in readings}
        self._uuids = (self._uuids or {}) | seen

    def saw_models(self, entries: Iterable[Registration]) -> None:
        """Replace the registrations that are this host's."""
        self._entries = {entry.name: entry for entry in entries}
        self._awake = {name: awake for name, awake in self._awake.items() if name in self._entries}

    def saw_residence(self, name: str, residence: Residence) -> None:
        """Take note of a probe. A server that merely doesn't answer still holds what it held."""
        if residence in (Residence.UNLOADED, Residence.SLEEPING):
            self._awake[name] = False
        elif residence is Residence.RESIDENT:
            self._awake[name] = True
        else:
            self._awake.setdefault(name, False)

    @property
    def gpus_known(self) -> bool:
        """Whether the GPUs have ever been read; before that nothing can be said of where a model is."""
        return self._uuids is not None

    def gpu_of(self, entry: Registration) -> str | None:
        """The id of a model's GPU: the one it names, or the only one here; None = unknown or elsewhere."""
        known = self._uuids or {}
        if entry.gpu is not None:
            index = _named(entry.gpu, known)
        else:
            index = next(iter(known)) if len(known) == 1 and self._is_here(entry) else None
        return None if index is None else self.gpu_id(index)

    def pools(self, gpu: str) -> tuple[Pool, ...]:
        """What vLLM servers hold on this GPU, as far as it is theirs for ever."""
        entries = [
            entry
            for entry in self._entries.values()
            if entry.backend is BackendType.VLLM and self.gpu_of(entry) == gpu
        ]
        return tuple(
            Pool(entry.name, self._size_mb(entry), probed=entry.name in self._awake)
            for entry in entries
            if self._awake.get(entry.name, True)
        )

    def _size_mb(self, entry: Registration) -> float | None:
        probed = entry.name in self._awake
        return entry.vram_gb * MB_PER_GB if probed and entry.vram_gb is not None else None

    def _is_here(self, entry: Registration) -> bool:
        if entry.host is not None or entry.url is None:
            return entry.host in (None, self.name)
        address = (urlsplit(entry.url).hostname or "").lower()
        if address in self._local_names:
            return True
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return False


def _named(gpu: str | int, known: dict[int, str | None]) -> int | None:
    """The index of the GPU that a registration names by index or UUID, if it is known."""
    if isinstance(gpu, int) or gpu.isdecimal():
        return int(gpu) if int(gpu) in known else None
    wanted = gpu.lower()
    return next((index for index, uuid in known.items() if uuid is not None and uuid.lower() == wanted), None)
