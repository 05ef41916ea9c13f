"""The contestants: our stack, and streaq, taskiq-redis, dramatiq behind the same door; all on one Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.gateway_parts.ours import (
    ROOT,
    SERVICES,
    await_resident,
    configured,
    registration,
    start_service,
)
from benchmarks.gateway_parts.peers import installed
from benchmarks.gateway_parts.processes import Bench, Unavailable, Usage, free_ports, usage
from benchmarks.pipeline_parts.measures import Ledger, probe
from shared.keys import Keys
from shared.process import ChildProcess
from shared.states import JobEvent
from shared.store.server import EmbeddedRedis

REQUIREMENTS = Path(__file__).parent / "requirements-peers.txt"
_APPS = "benchmarks.pipeline_parts.peer_apps"
_READY_S = 60.0
_PROBE_S = 5.0
_QUIET_S = 0.3
_QUIET_CPU_S = 0.03
_IMPORTED_CPU_S = 0.2
_PAGE = 5000


@dataclass
class Running:
    """A contestant that runs: its door, its processes, and how one more worker is started."""

    port: int
    parts: dict[str, ChildProcess]
    ledger: Ledger
    start_worker: Callable[[str], ChildProcess]
    worker: str

    def usage(self) -> dict[str, Usage]:
        """What each part has used so far."""
        return {name: usage(process) for name, process in self.parts.items()}

    def add_worker(self) -> None:
        """Start a second worker and wait until it has come to rest. Raises ``Unavailable``."""
        name = f"{self.worker} 2"
        process = self.parts[name] = self.start_worker(name.replace(" ", "-"))
        _await_rest({name: process})


@dataclass(frozen=True)
class Place:
    """Where contestants run, one at a time: the bench and the Redis that all share."""

    bench: Bench
    redis: EmbeddedRedis
    client: Redis

    def emptied(self, stack: ExitStack) -> Place:
        """The same with nothing in Redis; what is started there ends with ``stack``."""
        self.client.flushall()
        return replace(self, bench=replace(self.bench, exit=stack))


class _OurLedger:
    """Counts `job.succeeded` in the event stream, from where it last looked on."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._last = "-"
        self._ended = 0

    def waiting(self) -> int:
        """Jobs under a lease: whatever the backend has been asked for is either that or ended."""
        return _count(self._client.zcard(self._keys.static("leases")))

    def ended(self) -> int:
        while True:
            page: Any = self._client.xrange(self._keys.events, self._last, "+", count=_PAGE)
            self._ended += sum(fields["type"] == JobEvent.SUCCEEDED for _, fields in page)
            if page:
                self._last = f"({page[-1][0]}"
            if len(page) < _PAGE:
                return self._ended


@dataclass(frozen=True)
class _StreaqLedger:
    """A task is in the set of those that run until its result is in the index of results."""

    client: Redis

    def waiting(self) -> int:
        return _count(self.client.scard("streaq:default:index:running"))

    def ended(self) -> int:
        return _count(self.client.zcard("streaq:default:index:results"))


@dataclass(frozen=True)
class _TaskiqLedger:
    """Results lie under ids of their own beside the stream; a message is acked once its result is saved."""

    client: Redis

    def waiting(self) -> int:
        pending: Any = self.client.xpending("taskiq", "taskiq")
        return int(pending["pending"])

    def ended(self) -> int:
        return sum(1 for _ in self.client.scan_iter(count=_PAGE, _type="string"))


@dataclass(frozen=True)
class _DramatiqLedger:
    """A message is there until it is acked; nothing is kept of it then. Failed ones wait in the queue DQ."""

    client: Redis

    def waiting(self) -> int:
        queues = ("dramatiq:default.msgs", "dramatiq:default.DQ.msgs")
        return sum(_count(self.client.hlen(queue)) for queue in queues)

    def ended(self) -> None:
        return None


def _ours(place: Place, backend: str) -> Running:
    directory = place.bench.directory / f"us-{time.monotonic_ns()}"
    directory.mkdir()
    models = [registration("stub", place.bench.stub_port, backend)]
    port, environ = configured(directory, place.redis.local_url, models)

    def start(name: str) -> ChildProcess:
        return start_service(place.bench, name.partition("-")[0], f"{directory.name}-{name}", environ)

    parts: dict[str, ChildProcess] = {"redis": place.redis, **{one: start(one) for one in SERVICES}}
    await_resident(port, parts)
    return Running(port, parts, _OurLedger(place.client, Keys()), start, "router")


def _peer(name: str, worker: Sequence[str], ledger: Callable[[Redis], Ledger]) -> Callable[[Place], Running]:
    def start(place: Place) -> Running:
        wanted = REQUIREMENTS.read_text()
        programs = installed(place.bench.peers, "pipeline", "-r", str(REQUIREMENTS), mark=wanted)
        (port,) = free_ports(1)
        environ = {
            "BENCH_REDIS_URL": place.redis.local_url,
            "BENCH_BACKEND_URL": f"http://127.0.0.1:{place.bench.stub_port}",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        door = ["uvicorn", f"{_APPS}.on_{name}:door", "--host", "127.0.0.1", "--port", str(port)]
        door += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]

        def launch(part: str, argv: Sequence[str]) -> ChildProcess:
            program = str(programs / argv[0])
            log = f"{name}-{part}-{time.monotonic_ns()}"
            return place.bench.start(log, [str(programs / "python"), program, *argv[1:]], environ)

        parts = {"redis": place.redis, "door": launch("door", door), "worker": launch("worker", worker)}
        return Running(port, parts, ledger(place.client), lambda part: launch(part, worker), "worker")

    return start


@dataclass(frozen=True)
class Contestant:
    """Somebody who takes jobs; ``promise`` is what a job survives, in a few words."""

    label: str
    start: Callable[[Place], Running]
    promise: str


def _version(package: str) -> str:
    for line in REQUIREMENTS.read_text().splitlines():
        name, _, version = line.partition("==")
        if name == package:
            return f"{package} {version}"
    raise KeyError(package)


_OUR_PROMISE = (
    "job, request and queue entry written before the 202; a lease of 30 s, renewed; 3 tries; exactly one "
    "recorded end; decision and result kept 24 h"
)

CONTESTANTS: Mapping[str, Contestant] = {
    "us": Contestant("us (llama_cpp)", partial(_ours, backend="llama_cpp"), _OUR_PROMISE),
    "us-vllm": Contestant("us (vllm)", partial(_ours, backend="vllm"), _OUR_PROMISE),
    "streaq": Contestant(
        _version("streaq"),
        _peer("streaq", ["streaq", "run", f"{_APPS}.on_streaq:worker"], _StreaqLedger),
        "stream entry before the 202, taken over after 60 s without renewal; 3 tries; result kept 5 min",
    ),
    "taskiq": Contestant(
        _version("taskiq-redis"),
        _peer("taskiq", ["taskiq", "worker", f"{_APPS}.on_taskiq:broker", "--workers", "1"], _TaskiqLedger),
        "stream entry before the 202, acked once the result is saved (24 h); taken over after 10 min",
    ),
    "dramatiq": Contestant(
        _version("dramatiq"),
        _peer(
            "dramatiq",
            ["dramatiq", f"{_APPS}.on_dramatiq", "--processes", "1", "--threads", "8"],
            _DramatiqLedger,
        ),
        "message before the 202, back in the queue 60 s after its worker's last sign of life; no result kept",
    ),
}


def await_jobs(place: Place, running: Running) -> None:
    """Wait until a job gets through to the backend and its end is recorded; raises ``Unavailable``."""
    _await_rest({name: process for name, process in running.parts.items() if name != "redis"})
    wrong = probe(place.bench, running.port, _PROBE_S)
    if wrong is not None:
        said = (f"{part}: {' '.join(process.last_lines(2))}" for part, process in running.parts.items())
        raise Unavailable(f"POST /v1/jobs: {wrong}; {'; '.join(said)[-300:]}")
    deadline = time.monotonic() + _PROBE_S
    while running.ledger.waiting():
        if time.monotonic() > deadline:
            raise Unavailable("the end of the first job is not recorded")
        time.sleep(0.01)


def _await_rest(parts: Mapping[str, ChildProcess]) -> None:
    """Wait until processes that were just started have done their imports and have nothing more to do."""
    deadline = time.monotonic() + _READY_S
    before, quiet = dict.fromkeys(parts, 0.0), 0
    while quiet < 2:
        for part, process in parts.items():
            if process.poll() is not None or time.monotonic() > deadline:
                last = " ".join(process.last_lines(3)) or "no output"
                raise Unavailable(f"{part} did not start: {last[-300:]}")
        time.sleep(_QUIET_S)
        now = {part: usage(process).cpu_s for part, process in parts.items()}
        rests = all(now[part] > _IMPORTED_CPU_S and now[part] - before[part] <= _QUIET_CPU_S for part in now)
        quiet, before = quiet + 1 if rests else 0, now


def _count(found: object) -> int:
    return found if isinstance(found, int) else 0
