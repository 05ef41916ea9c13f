"""What is measured of a contestant: jobs posted to its door, and when the backend and Redis saw them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.gateway_parts.processes import Bench, Usage, machine_cpu_s, usage

_DRAIN_S = 10.0
_ANSWER_S = 10.0
_LOOK_S = 0.002


class MeasureFailed(Exception):
    """Jobs did not come through; the message says what came instead."""


@dataclass(frozen=True)
class Measure:
    """One kind of load: so many jobs in flight, and ``rest_ms`` between the end of one and the next POST."""

    name: str
    in_flight: int
    rest_ms: int = 0
    warm_up_s: float = 0.5
    seconds: float = 4.0


FULL = (
    Measure("alone", 1, rest_ms=10, seconds=5.0),
    Measure("one", 1),
    Measure("many", 32),
)
QUICK = (
    Measure("alone", 1, rest_ms=10, warm_up_s=0.1, seconds=0.3),
    Measure("one", 1, warm_up_s=0.1, seconds=0.3),
    Measure("many", 32, warm_up_s=0.1, seconds=0.3),
)
"""Small, to see that it runs; the figures mean little."""


class Ledger(Protocol):
    """What a contestant has in Redis about the ends of its jobs."""

    def waiting(self) -> int:
        """Jobs whose end is not recorded yet; one cheap command, since it is asked again and again."""

    def ended(self) -> int | None:
        """Jobs recorded as done since the start; None where nothing is kept of them."""


class Loaded(Protocol):
    """A contestant that runs."""

    @property
    def port(self) -> int: ...

    @property
    def ledger(self) -> Ledger: ...

    def usage(self) -> Mapping[str, Usage]: ...


@dataclass(frozen=True)
class Run:
    """What came of one load. Times in ms from the moment before the POST is sent; None where none came.

    ``way``: until the backend had read the request; ``answer``: until the door's 202 had been read.
    ``wall_s``: from the first POST until the end of the last job was recorded, ``jobs`` were by then.
    """

    jobs: int
    accepted: int
    errors: int
    repeated: int
    wall_s: float
    way_p50: float | None
    way_p99: float | None
    answer_p50: float | None
    answer_p99: float | None
    drained_ms: float

    @property
    def per_s(self) -> float:
        return self.jobs / self.wall_s


@dataclass(frozen=True)
class Sample:
    """A load and the CPU seconds of each part meanwhile; ``others``: cores that all else here used."""

    run: Run
    cpu_s: Mapping[str, float]
    others: float

    @property
    def cpu_ms_each(self) -> dict[str, float]:
        """CPU milliseconds a job, by part."""
        return {part: 1000 * cpu_s / max(1, self.run.jobs) for part, cpu_s in self.cpu_s.items()}

    @property
    def plain(self) -> dict[str, Any]:
        run = {**asdict(self.run), "per_s": self.run.per_s}
        return {**run, "cpu_s": dict(self.cpu_s), "others": self.others}


def sample(bench: Bench, loaded: Loaded, measure: Measure) -> Sample:
    """Warm up, load, and wait until all ends are recorded; raises ``MeasureFailed``."""
    _load(bench, loaded, measure, measure.warm_up_s)
    machine, stub, before = machine_cpu_s(), usage(bench.stub), loaded.usage()
    began = time.monotonic()
    run = _load(bench, loaded, measure, measure.seconds)
    wall_s = time.monotonic() - began
    after = loaded.usage()
    cpu_s = {part: after[part].cpu_s - before[part].cpu_s for part in after}
    known = sum(cpu_s.values()) + usage(bench.stub).cpu_s - stub.cpu_s
    return Sample(run, cpu_s, max(0.0, machine_cpu_s() - machine - known) / wall_s)


def probe(bench: Bench, port: int, wait_s: float) -> str | None:
    """What is wrong with the way of one job through this door, None if nothing."""
    said = _order(bench, port, in_flight=1, ms=1, rest_ms=0, drain_ms=round(1000 * wait_s))
    if said["arrived"] and said["accepted"]:
        return None
    return str(said["complaint"]) or f"a job accepted did not reach the backend within {wait_s:g} s"


def _load(bench: Bench, loaded: Loaded, measure: Measure, seconds: float) -> Run:
    ended_before = loaded.ledger.ended()
    said = _order(
        bench,
        loaded.port,
        in_flight=measure.in_flight,
        ms=round(1000 * seconds),
        rest_ms=measure.rest_ms,
        drain_ms=round(1000 * _DRAIN_S),
    )
    if not said["arrived"]:
        raise MeasureFailed(str(said["complaint"]) or "no job reached the backend")
    recorded_ns = _await_recorded(loaded.ledger)
    ended = loaded.ledger.ended()
    jobs = int(said["arrived"]) if ended is None or ended_before is None else ended - ended_before
    if jobs != said["accepted"] or said["unfinished"]:
        raise MeasureFailed(
            f"{said['accepted']} jobs accepted, {said['arrived']} at the backend, {jobs} recorded as done, "
            f"{said['unfinished']} on their way at the end; {said['complaint']}"
        )
    ways, answers = said["way_ms"], said["answer_ms"]
    return Run(
        jobs=jobs,
        accepted=said["accepted"],
        errors=said["errors"],
        repeated=said["repeated"],
        wall_s=(recorded_ns - said["first_post_ns"]) / 1e9,
        way_p50=ways[0],
        way_p99=ways[1],
        answer_p50=answers[0],
        answer_p99=answers[1],
        drained_ms=(recorded_ns - said["last_arrival_ns"]) / 1e6,
    )


def _await_recorded(ledger: Ledger) -> int:
    """The moment (CLOCK_MONOTONIC, ns) at which no job was left without its end."""
    deadline = time.monotonic() + _DRAIN_S
    while (waiting := ledger.waiting()) > 0:
        if time.monotonic() > deadline:
            raise MeasureFailed(f"{waiting} jobs without a recorded end {_DRAIN_S:g} s after the load")
        time.sleep(_LOOK_S)
    return time.monotonic_ns()


def _order(
    bench: Bench, door: int, *, in_flight: int, ms: int, rest_ms: int, drain_ms: int
) -> dict[str, Any]:
    """Have the program that is clients and backend measure, and read what it saw."""
    patience_s = (ms + drain_ms) / 1000 + _ANSWER_S
    connection = http.client.HTTPConnection("127.0.0.1", bench.stub_port, timeout=patience_s)
    query = f"door={door}&in_flight={in_flight}&ms={ms}&rest_ms={rest_ms}&drain_ms={drain_ms}"
    try:
        connection.request("GET", f"/measure?{query}")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        bench.require_stub()
        raise MeasureFailed(f"the load generator: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise MeasureFailed(f"the load generator: {answer.status} {body.decode(errors='replace')}")
    said: dict[str, Any] = json.loads(body)
    return said
