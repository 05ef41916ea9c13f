"""Processes of the benchmarks: where they run, what they use, and that all of them end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from shared.config import ENV_PREFIX
from shared.process import ChildProcess, describe_exit

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STUB_S = 10.0


class Unavailable(Exception):
    """A contestant that cannot be had here; the message says why."""


class StubDied(Exception):
    """The backend of all contestants is gone."""


@dataclass(frozen=True)
class Cores:
    """Cores by role; None = not pinned. A contestant has one core, however many processes it has."""

    contestants: int | None = None
    generator: int | None = None
    stub: int | None = None

    @classmethod
    def choose(cls) -> Self:
        """Of the cores this process may use: with one nothing is pinned, with two the stub shares."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            return cls()
        return cls(usable[0], usable[1], usable[min(2, len(usable) - 1)])

    def __str__(self) -> str:
        if self.contestants is None:
            return "one core: nothing pinned, everything competes"
        shared = " (shared)" if self.stub == self.generator else ""
        return (
            f"all processes of a contestant on core {self.contestants}, load generator on core "
            f"{self.generator}, stub on core {self.stub}{shared}"
        )


@dataclass
class Bench:
    """What contestants need to start: the stub's port, a directory, cores, and what ends with the run."""

    directory: Path
    peers: Path
    cores: Cores
    stub: ChildProcess
    stub_port: int
    load: Path
    exit: ExitStack = field(default_factory=ExitStack)

    def require_stub(self) -> None:
        """Raise ``StubDied`` if it has: then nothing measured since means anything."""
        status = self.stub.poll()
        if status is not None:
            raise StubDied(f"the stub died ({describe_exit(status)}): {' '.join(self.stub.last_lines(3))}")

    def launch_stub(self) -> None:
        """Start the stub on its core and wait until it says that it is ready; raises ``StubDied``."""
        self.exit.callback(self.stub.stop, 5.0)
        with pinned(self.cores.stub):
            self.stub.launch()
        deadline = time.monotonic() + _STUB_S
        while self.stub.last_lines() != ["ready"]:
            self.require_stub()
            if time.monotonic() > deadline:
                raise StubDied(f"the stub is not ready after {_STUB_S:g} s")
            time.sleep(0.01)

    def start(
        self, name: str, argv: Sequence[object], environ: Mapping[str, str] | None = None
    ) -> ChildProcess:
        """Launch a contestant's process on its core; ended with the run."""
        process = ChildProcess(
            name,
            [str(word) for word in argv],
            self.directory / f"{name}.out",
            environ={**_environ(), **(environ or {})},
            # nginx's worker outlives a killed master, not one that is told to end.
            orphan_signal=signal.SIGTERM,
        )
        return self.keep(process, process.launch)

    def keep(self, process: ChildProcess, launch: Callable[[], None]) -> ChildProcess:
        """Launch with ``launch`` on the contestants' core; ended with the run."""
        self.exit.callback(process.stop, 5.0)
        with pinned(self.cores.contestants):
            launch()
        return process


def _environ() -> dict[str, str]:
    """Ours, but loopback is reached without a proxy and no setting of ours is changed by it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started inside run on this core alone: as with taskset, they inherit our affinity."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nothing listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@dataclass(frozen=True)
class Usage:
    """CPU seconds used so far and resident bytes now of one process and what it started."""

    cpu_s: float = 0.0
    rss_bytes: int = 0


def machine_cpu_s() -> float:
    """CPU seconds that everything on this machine has used so far, other machines' share (steal) included."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, words[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def usage(process: ChildProcess) -> Usage:
    """Of the whole session that the process leads: nginx, for one, answers from a worker."""
    cpu_s, rss_bytes = 0.0, 0
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since it was listed
        # Counted from the field after the name: 3 is the session, 11 and 12 the times, 21 the pages.
        if int(fields[3]) == process.pid:
            cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
            rss_bytes += int(fields[21]) * _PAGE_BYTES
    return Usage(cpu_s, rss_bytes)
