"""Our gateway beside nginx, LiteLLM and two routers: `python -m benchmarks.gateway [--rounds 5] [--quick]`.

One stub backend, one load generator, and every measurement of a round taken of all contestants in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway_parts.contestants import STARTERS, Contestant, await_answers, peers_directory
from benchmarks.gateway_parts.figures import Results, Sample
from benchmarks.gateway_parts.load import FULL, QUICK, LoadFailed, Measure, NoCompiler, build, measured
from benchmarks.gateway_parts.processes import (
    Bench,
    Cores,
    StubDied,
    Unavailable,
    free_ports,
    machine_cpu_s,
    usage,
)
from benchmarks.gateway_parts.tables import markdown, plain
from shared.process import ChildProcess

_SETTLE_S = 5.0
_SETTLE_LOOK_S = 0.2
_SETTLED_CPU_S = 0.03
"""CPU seconds per look below which a contestant counts as idle again; ours does its beats even then."""


@dataclass(frozen=True)
class Plan:
    rounds: int
    measures: tuple[Measure, ...]
    names: tuple[str, ...]


def run(plan: Plan) -> Results:
    """Start everything, take all rounds, end everything. Raises ``NoCompiler`` or ``StubDied``."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        bench = _bench(stack, directory)
        started, skipped = _start(bench, plan.names)
        failures: list[str] = []
        rounds = [_round(bench, number, started, plan, failures) for number in range(plan.rounds)]
        return Results(
            labels={one.name: one.label for one in started},
            rounds=rounds,
            memory={one.name: one.usage() for one in started},
            skipped=skipped,
            failures=failures,
        )


def _bench(stack: ExitStack, directory: Path) -> Bench:
    """Compile both programs and start the stub."""
    cores, (port,) = Cores.choose(), free_ports(1)
    program, load = build(directory, "stub"), build(directory, "load")
    stub = ChildProcess("stub", [str(program), str(port)], directory / "stub.out")
    bench = Bench(directory, peers_directory(), cores, stub, port, load, stack)
    bench.launch_stub()
    return bench


def _start(bench: Bench, names: Sequence[str]) -> tuple[list[Contestant], dict[str, str]]:
    """Those that answer, and why others are left out."""
    started: list[Contestant] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            contestant = STARTERS[name](bench)
            await_answers(contestant)
        except Unavailable as error:
            bench.require_stub()
            skipped[name] = str(error)
            _say(f"skipped {name}: {error}")
        else:
            started.append(contestant)
            _say(f"{contestant.label} answers")
    return started, skipped


def _round(
    bench: Bench, number: int, contestants: Sequence[Contestant], plan: Plan, failures: list[str]
) -> dict[str, dict[str, Sample]]:
    """Every measure of every contestant, each round beginning with another of them."""
    first = number % len(contestants)
    order = [*contestants[first:], *contestants[:first]]
    found: dict[str, dict[str, Sample]] = {}
    for measure in plan.measures:
        found[measure.name] = {}
        for contestant in order:
            try:
                found[measure.name][contestant.name] = _sample(bench, contestant, measure)
            except LoadFailed as error:
                bench.require_stub()
                failures.append(f"{contestant.name}, {measure.name}, round {number + 1}: {error}")
                _say(failures[-1])
            _settle(contestant)
    _say(f"round {number + 1} of {plan.rounds} done")
    return found


def _sample(bench: Bench, contestant: Contestant, measure: Measure) -> Sample:
    machine, stub, before = machine_cpu_s(), usage(bench.stub), contestant.usage()
    load = measured(bench, contestant.port, measure)
    after = contestant.usage()
    cpu_s = {part: after[part].cpu_s - before[part].cpu_s for part in after}
    ours = sum(cpu_s.values()) + usage(bench.stub).cpu_s - stub.cpu_s + load.generator * load.wall_s
    others = max(0.0, machine_cpu_s() - machine - ours) / load.wall_s
    return Sample(load, cpu_s, others)


def _settle(contestant: Contestant) -> None:
    """Wait until it has done with what was broken off, or the next one pays for it."""
    deadline = time.monotonic() + _SETTLE_S
    before = _cpu_s(contestant)
    while time.monotonic() < deadline:
        time.sleep(_SETTLE_LOOK_S)
        now = _cpu_s(contestant)
        if now - before <= _SETTLED_CPU_S:
            return
        before = now


def _cpu_s(contestant: Contestant) -> float:
    return sum(used.cpu_s for used in contestant.usage().values())


def _machine(plan: Plan) -> str:
    rounds = "1 round" if plan.rounds == 1 else f"medians of {plan.rounds} rounds, interleaved over all"
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores; {Cores.choose()}; {rounds}; "
        "added = less direct in the same round, ratios within a round."
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plan(chosen: argparse.Namespace) -> Plan:
    wanted = tuple(chosen.only.split(",")) if chosen.only else tuple(STARTERS)
    unknown = [name for name in wanted if name not in STARTERS]
    if unknown:
        raise SystemExit(f"--only: no contestant {unknown[0]!r}: there are {', '.join(STARTERS)}")
    # Without direct nothing can be said of what was added.
    names = tuple(name for name in STARTERS if name in wanted or name == "direct")
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    return Plan(rounds, QUICK if chosen.quick else FULL, names)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, help="how often all is measured (5; with --quick 1)")
    parser.add_argument(
        "--only", help=f"contestants, comma-separated, of {', '.join(STARTERS)}; direct is always in"
    )
    parser.add_argument("--quick", action="store_true", help="tiny measurements, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    _arguments(parser)
    chosen = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("benchmarks.gateway needs Linux: epoll for the load, /proc for what is used")
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
