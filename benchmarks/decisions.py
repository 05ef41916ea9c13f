"""How long a decision and a whole scheduling pass take: `python -m benchmarks.decisions [--quick]`."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.fleet import AGENTS, GPUS, MODELS, SETTINGS, SUBMITTERS, fill_fleet, fill_queues
from shared.decision.routing import decide
from shared.decision.snapshot import Request, Snapshot
from shared.keys import Keys
from shared.snapshots import request_of, snapshot_of
from shared.states import Action
from shared.store.client import connect_commands
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.records import View
from shared.store.server import EmbeddedRedis

HEADS = 8
"""Jobs read ahead per queue, as in the scheduler."""
_PARTS = ("wall", "client", "snapshot", "first", "all")
DECISION_TARGET_MS, PASS_TARGET_MS = 1.0, 20.0


@dataclass(frozen=True)
class Scale:
    repeats: int
    decisions: int
    passes: int
    queued: tuple[int, ...]


FULL = Scale(repeats=9, decisions=1000, passes=12, queued=(100, 1_000, 10_000))
QUICK = Scale(repeats=1, decisions=50, passes=2, queued=(20, 130))


@dataclass(frozen=True)
class Spread:
    """Milliseconds: medians over the repeats of each repeat's p50 and p99."""

    p50: float
    p99: float

    @classmethod
    def of(cls, repeats: Sequence[Sequence[float]]) -> Spread:
        return cls(
            *(statistics.median(_quantile(times, share) for times in repeats) for share in (0.5, 0.99))
        )


@dataclass(frozen=True)
class DecisionTimes:
    """CPU time of single decisions, which no neighbour on the machine lengthens, and wall time beside it."""

    label: str
    cpu: Spread
    wall: Spread


@dataclass(frozen=True)
class PassTimes:
    """One size of the queue: what each part of a pass costs, in ms of CPU unless called wall.

    ``first_heads`` decides on the first job of every queue, ``all_heads`` on all that were read.
    """

    queued: int
    heads_each: int
    heads: int
    view_wall: Spread
    view_server: float
    view_client: Spread
    snapshot: Spread
    first_heads: Spread
    all_heads: Spread

    @property
    def held_ms(self) -> float:
        """A pass that places nothing: the view, the snapshot, one decision per queue."""
        return self.view_server + self.view_client.p50 + self.snapshot.p50 + self.first_heads.p50


def time_decisions(
    label: str, snapshot: Snapshot, requests: Sequence[Request], scale: Scale
) -> DecisionTimes:
    cpu: list[list[float]] = []
    wall: list[list[float]] = []
    for _ in range(scale.repeats):
        cpu.append([])
        wall.append([])
        for number in range(scale.decisions):
            request = requests[number % len(requests)]
            began, cpu_began = time.perf_counter(), time.thread_time()
            decide(snapshot, request)
            cpu_ended, ended = time.thread_time(), time.perf_counter()
            cpu[-1].append(1000 * (cpu_ended - cpu_began))
            wall[-1].append(1000 * (ended - began))
    return DecisionTimes(label, Spread.of(cpu), Spread.of(wall))


async def decision_table(fleet: FleetStore, scale: Scale) -> list[DecisionTimes]:
    """One row per kind of decision, on a fleet with 50 models and 8 GPUs."""
    free = snapshot_of(await fleet.view(heads=0), SETTINGS)
    busy = replace(free, models={name: replace(m, in_flight=m.slots) for name, m in free.models.items()})
    anything = [Request(max_tokens=64 + n % 7, prompt_tokens=10 + n % 50) for n in range(50)]
    agents = [replace(request, agent_type=f"agent-{n % AGENTS}") for n, request in enumerate(anything)]
    named = [replace(r, model=f"model-{n % MODELS:02}", fallback=False) for n, r in enumerate(anything)]
    rows = [
        ("any model, 50 candidates: dispatch", free, anything, Action.DISPATCH),
        ("an agent type, 15 candidates: dispatch", free, agents, Action.DISPATCH),
        ("a named model: dispatch", free, named, Action.DISPATCH),
        ("any model, all 50 busy: hold", busy, anything, Action.HOLD),
    ]
    for label, snapshot, requests, action in rows:
        if any(decide(snapshot, request).action is not action for request in requests):
            raise AssertionError(f"{label}: the fleet does not give the decisions that are to be timed")
    return [time_decisions(label, snapshot, requests, scale) for label, snapshot, requests, _ in rows]


class PassTimer:
    """Collects the times of passes over one namespace, a repeat at a time."""

    def __init__(self, redis: Redis, fleet: FleetStore, queued: int, heads: int) -> None:
        self._redis = redis
        self._fleet = fleet
        self._queued = queued
        self._heads = heads
        self._read = 0
        self._server: list[float] = []
        self._times: dict[str, list[list[float]]] = {name: [] for name in _PARTS}

    async def repeat(self, passes: int) -> None:
        for times in self._times.values():
            times.append([])
        before = await server_cpu_ms(self._redis)
        views = []
        for _ in range(passes):
            began, cpu_began = time.perf_counter(), time.process_time()
            views.append(await self._fleet.view(heads=self._heads))
            self._times["wall"][-1].append(1000 * (time.perf_counter() - began))
            self._times["client"][-1].append(1000 * (time.process_time() - cpu_began))
        self._server.append((await server_cpu_ms(self._redis) - before) / passes)
        self._read = sum(len(target.heads) for target in views[-1].targets)
        for view in views:
            for name, took in zip(_PARTS[2:], _decide_all(view), strict=True):
                self._times[name][-1].append(took)

    @property
    def times(self) -> PassTimes:
        wall, client, snapshot, first, every = (Spread.of(self._times[name]) for name in _PARTS)
        server = statistics.median(self._server)
        return PassTimes(self._queued, self._heads, self._read, wall, server, client, snapshot, first, every)


def _decide_all(view: View) -> tuple[float, float, float]:
    """CPU ms of the snapshot, of a decision on every queue's first job, and of one on every job."""
    marks = [time.thread_time()]
    snapshot = snapshot_of(view, SETTINGS)
    marks.append(time.thread_time())
    for target in view.targets:
        decide(snapshot, request_of(target.heads[0], view.now_ms))
    marks.append(time.thread_time())
    for target in view.targets:
        for head in target.heads:
            decide(snapshot, request_of(head, view.now_ms))
    marks.append(time.thread_time())
    snapshot_s, first_s, all_s = (later - earlier for earlier, later in itertools.pairwise(marks))
    return 1000 * snapshot_s, 1000 * first_s, 1000 * all_s


async def server_cpu_ms(redis: Redis) -> float:
    """CPU time that the server has used so far."""
    used = await redis.info("cpu")
    return 1000 * (float(used["used_cpu_user"]) + float(used["used_cpu_sys"]))


async def measure(scale: Scale) -> str:
    """Both tables as Markdown, from a Redis of our own."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        server = stack.enter_context(EmbeddedRedis(_free_port(), directory))
        redis = connect_commands(server.url, "bench", connections=SUBMITTERS)
        stack.push_async_callback(redis.aclose)
        timers = []
        for queued in scale.queued:
            fleet, jobs = FleetStore(redis, Keys(f"q{queued}")), JobStore(redis, Keys(f"q{queued}"))
            await fill_fleet(fleet)
            await fill_queues(jobs, range(queued))
            timers.append(PassTimer(redis, fleet, queued, HEADS))
        timers.append(PassTimer(redis, fleet, queued, 1))
        decisions = await decision_table(fleet, scale)
        # In turn: on a shared machine one part of an hour is not like another.
        for _ in range(scale.repeats):
            for timer in timers:
                await timer.repeat(scale.passes)
        passes = [timer.times for timer in timers]
        return "\n".join([_machine(server, scale), "", *_decision_lines(decisions), "", *_pass_lines(passes)])


def _machine(server: EmbeddedRedis, scale: Scale) -> str:
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, server "
        f"{server.binary.version}; {MODELS} models, {GPUS} GPUs; medians of {scale.repeats}; ms of CPU."
    )


def _decision_lines(rows: Sequence[DecisionTimes]) -> list[str]:
    lines = ["| one `decide` | p50 | p99 | p99 < 1 ms | wall p50 | wall p99 |", "|---|---|---|---|---|---|"]
    return lines + [
        f"| {row.label} | {row.cpu.p50:.3f} | {row.cpu.p99:.3f} | {_met(row.cpu.p99, DECISION_TARGET_MS)} | "
        f"{row.wall.p50:.3f} | {row.wall.p99:.3f} |"
        for row in rows
    ]


def _pass_lines(rows: Sequence[PassTimes]) -> list[str]:
    lines = [
        "| queued jobs | heads a queue | heads read | view: server | view: client | snapshot | first heads | "
        "**pass** | < 20 ms | all heads | view, wall p50 (p99) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row.queued:,} | {row.heads_each} | {row.heads} | {row.view_server:.1f} | "
        f"{row.view_client.p50:.1f} | {row.snapshot.p50:.1f} | {row.first_heads.p50:.1f} | "
        f"**{row.held_ms:.1f}** | {_met(row.held_ms, PASS_TARGET_MS)} | {row.all_heads.p50:.1f} | "
        f"{row.view_wall.p50:.1f} ({row.view_wall.p99:.1f}) |"
        for row in rows
    ]


def _met(value: float, target: float) -> str:
    return "yes" if value < target else "no"


def _quantile(times: Sequence[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small repeat, to see that it runs")
    chosen = parser.parse_args()
    print(asyncio.run(measure(QUICK if chosen.quick else FULL)))


if __name__ == "__main__":
    main()
