"""A job's way to its backend, beside streaq, taskiq-redis and dramatiq: `python -m benchmarks.pipeline`.

One program is the clients and the no-op backend; all queues use one Redis; a round measures each in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

from benchmarks.gateway_parts.contestants import peers_directory
from benchmarks.gateway_parts.load import NoCompiler, build
from benchmarks.gateway_parts.processes import Bench, Cores, StubDied, Unavailable, Usage, free_ports
from benchmarks.pipeline_parts.contestants import CONTESTANTS, Place, Running, await_jobs
from benchmarks.pipeline_parts.figures import Cell, IdleCost, Results
from benchmarks.pipeline_parts.idle import WARM_UP_S, idle_cost
from benchmarks.pipeline_parts.measures import FULL, QUICK, Measure, MeasureFailed, Sample, sample
from benchmarks.pipeline_parts.tables import markdown, plain
from shared.process import ChildProcess
from shared.store.server import EmbeddedRedis

SOURCES = Path(__file__).parent / "pipeline_parts"
IDLE_S = 30.0


@dataclass(frozen=True)
class Plan:
    rounds: int
    measures: tuple[Measure, ...]
    names: tuple[str, ...]
    cores: Cores
    idle_s: float = IDLE_S
    idle_warm_up_s: float = WARM_UP_S


@dataclass
class _Taken:
    """What was found so far."""

    rounds: list[dict[Cell, dict[str, Sample]]] = field(default_factory=list)
    memory: dict[str, dict[str, Usage]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def run(plan: Plan) -> Results:
    """Take all rounds and end everything. Raises ``NoCompiler`` or ``StubDied``."""
    taken = _Taken()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-pipeline-")))
        place = _place(stack, directory, plan.cores)
        for number in range(plan.rounds):
            first = number % len(plan.names)
            taken.rounds.append({})
            for name in (*plan.names[first:], *plan.names[:first]):
                if name not in taken.skipped:
                    _turn(place, name, plan.measures, taken)
            _say(f"round {number + 1} of {plan.rounds} done")
        idle: dict[str, IdleCost] = {}
        if plan.idle_s and "us" in plan.names:
            source, idle = idle_cost(place, plan.idle_s, plan.idle_warm_up_s)
            _say(f"idle cost taken, GPU: {source}")
    labels = {name: CONTESTANTS[name].label for name in plan.names if name not in taken.skipped}
    return Results(
        labels, taken.rounds, taken.memory, idle, plan.idle_s, skipped=taken.skipped, failures=taken.failures
    )


def _place(stack: ExitStack, directory: Path, cores: Cores) -> Place:
    """Compile the clients and the backend, start them and the Redis that all share."""
    port, redis_port = free_ports(2)
    program = build(directory, "jobs", SOURCES)
    stub = ChildProcess("jobs", [str(program), str(port)], directory / "jobs.out")
    bench = Bench(directory, peers_directory(), cores, stub, port, program, stack)
    bench.launch_stub()
    redis = EmbeddedRedis(redis_port, directory / "redis")
    bench.keep(redis, redis.start)
    client = Redis.from_url(redis.url, decode_responses=True)
    stack.callback(client.close)
    return Place(bench, redis, client)


def _turn(place: Place, name: str, measures: Sequence[Measure], taken: _Taken) -> None:
    """Start a contestant, measure it with one worker and with two, and end it."""
    with ExitStack() as stack:
        here = place.emptied(stack)
        try:
            running = CONTESTANTS[name].start(here)
            await_jobs(here, running)
            _measured(here, running, (name, 1), measures, taken)
            taken.memory[name] = running.usage()
            running.add_worker()
            _measured(here, running, (name, 2), measures, taken)
        except Unavailable as error:
            place.bench.require_stub()
            taken.skipped[name] = str(error)
            _say(f"skipped {name}: {error}")


def _measured(
    place: Place, running: Running, who: tuple[str, int], measures: Sequence[Measure], taken: _Taken
) -> None:
    name, workers = who
    for measure in measures:
        try:
            found = sample(place.bench, running, measure)
        except MeasureFailed as error:
            place.bench.require_stub()
            taken.failures.append(f"{name} with {workers}, {measure.name}: {error}")
            _say(taken.failures[-1])
        else:
            taken.rounds[-1].setdefault((measure.name, workers), {})[name] = found


def _machine(plan: Plan) -> str:
    rounds = "1 round" if plan.rounds == 1 else f"medians of {plan.rounds} rounds, interleaved over all"
    cores = plan.cores
    where = (
        f"a contestant and Redis on core {cores.contestants}, clients and backend on core {cores.generator}"
        if cores.contestants is not None
        else "nothing pinned"
    )
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores: {where}; {rounds}; ratios within a round."
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plan(chosen: argparse.Namespace) -> Plan:
    wanted = tuple(chosen.only.split(",")) if chosen.only else tuple(CONTESTANTS)
    unknown = [name for name in wanted if name not in CONTESTANTS]
    if unknown:
        raise SystemExit(f"--only: no contestant {unknown[0]!r}: there are {', '.join(CONTESTANTS)}")
    names = tuple(name for name in CONTESTANTS if name in wanted)
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    cores = Cores.choose() if chosen.cores == "one" else Cores()
    if chosen.quick:
        return Plan(rounds, QUICK, names, cores, idle_s=1.0, idle_warm_up_s=0.0)
    return Plan(rounds, FULL, names, cores)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, help="how often all is measured (3; with --quick 1)")
    parser.add_argument("--only", help=f"contestants, comma-separated, of {', '.join(CONTESTANTS)}")
    parser.add_argument(
        "--cores", choices=("one", "all"), default="one",
        help="all processes of a contestant on one core, or wherever the system puts them",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny measurements, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    _arguments(parser)
    chosen = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("benchmarks.pipeline needs Linux: epoll for the load, /proc for what is used")
    plan = _plan(chosen)
    # Whatever ends us, what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        results = run(plan)
    except (NoCompiler, StubDied) as error:
        raise SystemExit(str(error)) from None
    machine = _machine(plan)
    print(f"{machine}\n\n{markdown(results)}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine, **plain(results)}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
