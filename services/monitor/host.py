"""What the monitor knows of its host: GPUs seen, models registered, which model is on which GPU."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from services.monitor.ownership import Owners, Server
from shared.decision.memory import MB_PER_GB
from shared.gpu.source import GpuProcess, GpuReading
from shared.registry import Registration
from shared.states import BackendType, Residence

_GONE = (Residence.UNLOADED, Residence.SLEEPING)
_DEFAULT_PORTS = {"http": 80, "https": 443}


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
        self._processes: dict[int, tuple[GpuProcess, ...] | None] = {}
        self._owners: Owners = {}
        self._entries: dict[str, Registration] = {}
        self.models_known = False
        """Whether the registrations have ever been read; before that a vLLM pool would look like pressure."""
        self._awake: dict[str, bool] = {}
        self._residence: dict[str, Residence] = {}
        self._kinds: dict[str, BackendType] = {}
        self._placed: dict[str, tuple[int, ...]] = {}

    def gpu_id(self, index: int) -> str:
        return f"{self.name}/{index}"

    def owns(self, entry: Registration) -> bool:
        """Whether this host's monitor probes that model."""
        return entry.host in (None, self.name)

    def saw_gpus(self, readings: Iterable[GpuReading]) -> None:
        """Remember these GPUs; one that is missing now still has its models."""
        seen = {reading.index: reading for reading in readings}
        self._uuids = (self._uuids or {}) | {index: reading.uuid for index, reading in seen.items()}
        unread: dict[int, tuple[GpuProcess, ...] | None] = dict.fromkeys(self._processes)
        self._processes = unread | {index: reading.processes for index, reading in seen.items()}

    def saw_models(self, entries: Iterable[Registration]) -> None:
        """Replace the registrations that are this host's."""
        self.models_known = True
        known, self._entries = self._entries, {entry.name: entry for entry in entries}
        for name, entry in known.items():
            if self._entries.get(name) != entry:
                self._awake.pop(name, None)
                self._residence.pop(name, None)
                self._placed.pop(name, None)
                self._kinds.pop(name, None)

    def saw_owners(self, owners: Owners) -> None:
        """Replace what is known of processes on the GPUs; a model that has none now stays where it was."""
        self._owners = owners
        for name, entry in self._entries.items():
            pids = self._pids(entry)
            unread = {index for index in self._placed.get(name, ()) if self._processes.get(index) is None}
            where = {index for index in self._processes if self._on(index, pids)}
            if where:
                self._placed[name] = tuple(sorted(where | unread))

    def saw_residence(self, name: str, residence: Residence) -> None:
        """Take note of a probe. A server that merely doesn't answer still holds what it held."""
        self._residence[name] = residence
        if residence in (Residence.UNLOADED, Residence.SLEEPING):
            self._awake[name] = False
        elif residence in (Residence.RESIDENT, Residence.LOADING, Residence.DRAINING):  # also a paused one
            self._awake[name] = True
        else:
            self._awake.setdefault(name, False)

    def saw_kind(self, name: str, kind: BackendType) -> None:
        """Take note of what kind of server a model turned out to be on."""
        self._kinds[name] = kind

    @property
    def gpus_known(self) -> bool:
        """Whether the GPUs have ever been read; before that nothing can be said of where a model is."""
        return self._uuids is not None

    @property
    def gpu_pids(self) -> frozenset[int]:
        """The processes on all GPUs, as far as they are known."""
        lists = (listed for listed in self._processes.values() if listed is not None)
        return frozenset(process.pid for listed in lists for process in listed if process.pid is not None)

    @property
    def servers(self) -> frozenset[Server]:
        """The ports of this host that its registrations name."""
        servers = (self._server(entry) for entry in self._entries.values())
        return frozenset(server for server in servers if server is not None)

    def loads(self, entry: Registration) -> bool:
        """Whether a vLLM server whose port is still shut already is a process on a GPU of this host."""
        return self._is_vllm(entry) and bool(self._pids(entry))

    def gpus_of(self, entry: Registration) -> tuple[str, ...]:
        """The ids of a model's GPUs; empty = unknown or elsewhere.

        The one it names, or the only one here, or, on a host with several, those where its processes are.
        """
        known = self._uuids or {}
        if entry.gpu is not None:
            indices = _named(entry.gpu, known)
        elif not self._is_here(entry):
            indices = ()
        else:
            indices = tuple(known) if len(known) == 1 else self._placed.get(entry.name, ())
        return tuple(self.gpu_id(index) for index in indices)

    def memory_mb(self, entry: Registration) -> float | None:
        """What the model's own processes hold on its GPUs; None = unknown.

        Where several models share a process (or the processes of a router), only the one that is loaded, if
        it is the only one, can be told.
        """
        pids = self._pids(entry)
        sharers = [other for other in self._entries.values() if pids & self._pids(other)]
        loaded = [other.name for other in sharers if self._residence.get(other.name) not in _GONE]
        if loaded != [entry.name]:
            return None
        placed = {self.gpu_id(index): index for index in self._processes}
        indices = {placed[gpu] for gpu in self.gpus_of(entry) if gpu in placed}
        indices |= {index for index in self._processes if self._on(index, pids)}
        sizes = [self._measured_mb(index, pids) for index in indices]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    def pools(self, gpu: str) -> tuple[Pool, ...]:
        """What vLLM servers hold on this GPU, as far as it is theirs for ever; each server once."""
        entries: dict[Server | str, Registration] = {}
        for entry in self._entries.values():
            vllm = self._is_vllm(entry) and gpu in self.gpus_of(entry)
            if vllm and self._awake.get(entry.name, True):
                entries.setdefault(self._server(entry) or entry.name, entry)
        return tuple(
            Pool(entry.name, self._size_mb(entry, gpu), probed=entry.name in self._awake)
            for entry in entries.values()
        )

    def _is_vllm(self, entry: Registration) -> bool:
        return (entry.backend or self._kinds.get(entry.name)) is BackendType.VLLM

    def _size_mb(self, entry: Registration, gpu: str) -> float | None:
        """What the pool is measured to hold there, else its share of what is declared."""
        if entry.name not in self._awake:
            return None
        measured = self._measured_mb(int(gpu.rpartition("/")[2]), self._pids(entry))
        if measured is not None or entry.vram_gb is None:
            return measured
        return entry.vram_gb * MB_PER_GB / len(self.gpus_of(entry))

    def _measured_mb(self, index: int, pids: frozenset[int]) -> float | None:
        sizes = self._on(index, pids)
        known = [size for size in sizes if size is not None]
        return sum(known) if sizes and len(known) == len(sizes) else None

    def _pids(self, entry: Registration) -> frozenset[int]:
        server = self._server(entry)
        return frozenset() if server is None else self._owners.get(server, frozenset())

    def _on(self, index: int, pids: frozenset[int]) -> list[float | None]:
        """The sizes of those processes on one GPU."""
        listed = self._processes.get(index) or ()
        return [process.memory_mb for process in listed if process.pid in pids]

    def _server(self, entry: Registration) -> Server | None:
        if not self._is_here(entry):
            return None
        port = entry.port
        if entry.url is not None:
            port = _port(entry.url)
        return None if port is None else Server(port, vllm=self._is_vllm(entry))

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


def _port(url: str) -> int | None:
    address = urlsplit(url)
    try:
        return address.port or _DEFAULT_PORTS.get(address.scheme)
    except ValueError:  # above 65535
        return None


def _named(gpu: str | int, known: dict[int, str | None]) -> tuple[int, ...]:
    """The index of the GPU that a registration names by index or UUID, empty if it is not known."""
    if isinstance(gpu, int) or gpu.isdecimal():
        return (int(gpu),) if int(gpu) in known else ()
    wanted = gpu.lower()
    return tuple(index for index, uuid in known.items() if uuid is not None and uuid.lower() == wanted)
