"""The benchmarks that this process runs, and any benchmark as it stands in Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

from services.api.benchmark_bodies import Benchmark, BenchmarkParameters
from services.api.benchmark_run import Parts, Run
from services.api.representations import JobError, stored_json, whole
from shared.states import JobState
from shared.store.benchmarks import BenchmarkRecord, Measurable

_LOOK_S = 1.0


class Benchmarks:
    """The benchmarks that this process runs; ``parts.store`` knows those of all."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._running: dict[asyncio.Task[None], Run] = {}

    async def get(self, benchmark_id: str) -> Benchmark | None:
        """One benchmark as it stands, of whatever api; None if unknown or kept no longer."""
        record = await self._parts.store.get(benchmark_id)
        return None if record is None else _body(record)

    async def start(
        self, what: Measurable, parameters: BenchmarkParameters, request_id: str
    ) -> tuple[str, asyncio.Task[None] | None]:
        """Begin in the background; without a task the id is of the one that measures any of it already.

        ``request_id``: of the request that asks for it.
        """
        benchmark_id = secrets.token_hex(8)
        fields = {"parameters": parameters.model_dump_json(), "requests": "0"}
        running = await self._parts.store.begin(benchmark_id, what, fields)
        if running != benchmark_id:
            return running, None
        run = Run(self._parts, benchmark_id, what, parameters, request_id)
        task = asyncio.create_task(run.run(), name=f"benchmark {benchmark_id}")
        self._running[task] = run
        task.add_done_callback(lambda ended: self._running.pop(ended, None))
        return benchmark_id, task

    async def wait(
        self, task: asyncio.Task[None], within_s: float | None, client_left: Callable[[], Awaitable[bool]]
    ) -> None:
        """Until it has ended, or time is up; a client that leaves cancels it."""
        until = None if within_s is None else time.monotonic() + within_s
        while not task.done():
            left = _LOOK_S if until is None else min(_LOOK_S, until - time.monotonic())
            if left <= 0:
                return
            await asyncio.wait({task}, timeout=left)
            run = self._running.get(task)
            if run is not None and await client_left():
                run.stop(JobState.CANCELLED, "client_left", "the client that waited for it left")
                return

    async def close(self) -> None:
        """End all that still run."""
        for run in self._running.values():
            run.interrupt()
        if self._running:
            await asyncio.wait(list(self._running))


def _body(record: BenchmarkRecord) -> Benchmark:
    fields = record.fields
    error = None
    if record.interrupted:
        error = JobError(type="interrupted", detail="the api that ran it is gone")
    elif fields.get("error_type"):
        error = JobError(type=fields["error_type"], detail=fields.get("error_detail", ""))
    result = stored_json(fields.get("result", ""))
    values = {
        "requests": whole(fields, "requests") or 0,
        **(result if isinstance(result, dict) else {}),
        "benchmark_id": record.benchmark_id,
        "model": fields["model"],
        "state": JobState.FAILED if record.interrupted else fields["state"],
        "location": location_of(record.benchmark_id),
        "started_ms": whole(fields, "started_ms"),
        "finished_ms": whole(fields, "finished_ms"),
        "parameters": stored_json(fields.get("parameters", "")),
        "error": error,
    }
    return Benchmark.model_validate(values)


def location_of(benchmark_id: str) -> str:
    """Where a benchmark can be read."""
    return f"/v1/gpu/benchmarks/{benchmark_id}"
