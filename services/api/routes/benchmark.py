"""The calls that measure a model, and read what was measured."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from services.api import problems
from services.api.benchmark import location_of
from services.api.benchmark_bodies import Benchmark, BenchmarkParameters
from services.api.measurable import critical, gpus_of, measurable, serving
from services.api.parameters import KNOWN_ONCE, ModelName, Within
from services.api.problems import (
    BENCHMARK_RUNS,
    INVALID,
    NOT_NOW,
    UNKNOWN_BENCHMARK,
    UNKNOWN_MODEL,
    Problem,
)
from services.api.request_id import request_id_of
from services.api.state import ApiState, state_of
from shared.decision.causes import Cause
from shared.decision.routing import decide
from shared.decision.snapshot import Request as Asked
from shared.decision.snapshot import Snapshot
from shared.snapshots import snapshot_of
from shared.states import FINAL_STATES, Action
from shared.store.benchmarks import Measurable

router = APIRouter(tags=["gpu"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))

_ID_SHOWN = 64
_PASSES = frozenset({Cause.CLAIMED_BUSY, Cause.MODEL_BUSY, Cause.GPU_BUSY, Cause.KV_FULL, Cause.SATURATED})
"""What a benchmark may wait for; anything else would be waiting for something that need not come."""


class BenchmarkQuery(BenchmarkParameters):
    """What to measure, and how long to wait for it."""

    model_name: ModelName = Field(description="A name that a registered model answers to")
    wait: Annotated[float, Within(0, 1000, "seconds")] | None = Field(
        default=None,
        description="Seconds to wait for its end (0: answer 202 at once); left out: until it ends",
    )


@router.post(
    "/v1/gpu/benchmark-model",
    response_class=Response,
    responses={
        200: {"model": Benchmark, "description": "It has ended; state says how"},
        202: {"model": Benchmark, "description": "It goes on: read it at its location"},
        **problems.responses(404, 409, 422, 503),
    },
)
async def benchmark_model(request: Request, query: Annotated[BenchmarkQuery, Query()]) -> Response:
    """Measure a model with real requests through the queue, behind all others.

    A client that leaves while it waits cancels it. One at a time measures a model, whatever names it has.
    """
    state = state_of(request)
    parameters = BenchmarkParameters(**query.model_dump(include=set(BenchmarkParameters.model_fields)))
    async with state.store():
        what = await _checked(state, query)
        benchmark_id, task = await state.benchmarks.start(what, parameters, request_id_of(request.scope))
    if task is None:
        raise Problem(
            BENCHMARK_RUNS,
            f"{query.model_name} is measured already, by this or another name: read "
            f"{location_of(benchmark_id)}, then try again",
        )
    await state.benchmarks.wait(task, query.wait, request.is_disconnected)
    body = await _read(state, benchmark_id)
    status = 200 if body.state in FINAL_STATES else 202
    return Response(
        body.model_dump_json(), status, headers={"Location": body.location}, media_type="application/json"
    )


@router.get(
    "/v1/gpu/benchmarks/{benchmark_id}",
    response_class=Response,
    responses={200: {"model": Benchmark}, **problems.responses(404, 503)},
)
async def read_benchmark(request: Request, benchmark_id: str) -> Response:
    """One benchmark as it stands, with its figures once it has ended."""
    body = await _read(state_of(request), benchmark_id)
    return Response(body.model_dump_json(), media_type="application/json")


async def _read(state: ApiState, benchmark_id: str) -> Benchmark:
    async with state.store():
        body = await state.benchmarks.get(benchmark_id)
    if body is None:
        shown = benchmark_id[:_ID_SHOWN]
        raise Problem(UNKNOWN_BENCHMARK, f"no benchmark {shown!r}: it never was, or it is kept no longer")
    return body


async def _checked(state: ApiState, query: BenchmarkQuery) -> Measurable:
    """What would be measured; raises ``Problem`` if it can't be."""
    view = await state.fleet.view(heads=0)
    snapshot = snapshot_of(view, state.settings)
    models = serving(snapshot, query.model_name)
    if not models:
        raise _unknown(snapshot, query.model_name)
    wanted = query.prompt_tokens + query.max_tokens
    room = max(model.context_tokens for model in models)
    if wanted > room and all(model.context_known for model in models):
        raise Problem(
            INVALID,
            f"prompt_tokens: {query.prompt_tokens}, with max_tokens {query.max_tokens}, is more than the "
            f"context of {room} tokens that {query.model_name} has: ask for less",
            field="prompt_tokens",
        )
    reason = critical(gpus_of(snapshot, models)) or _obstacle(snapshot, query)
    if reason is not None:
        raise Problem(NOT_NOW, f"{query.model_name} cannot be measured now: {reason}")
    return measurable(query.model_name, models)


def _unknown(snapshot: Snapshot, name: str) -> Problem:
    known = {served for model in snapshot.models.values() for served in model.serves}
    if name in snapshot.models:
        answers = ", ".join(snapshot.models[name].serves)
        return Problem(
            INVALID,
            f"model_name: the registration {name} answers to {answers} only: name that",
            field="model_name",
        )
    listed = ", ".join(sorted(known)) or "none yet"
    return Problem(UNKNOWN_MODEL, f"no model answers to {name!r}; known: {listed}", known=known)


def _obstacle(snapshot: Snapshot, query: BenchmarkQuery) -> str | None:
    asked = Asked(
        model=query.model_name,
        prompt_tokens=query.prompt_tokens,
        max_tokens=query.max_tokens,
        priority=0,
        fallback=False,
    )
    decision = decide(snapshot, asked)
    return None if decision.action is Action.DISPATCH or decision.code in _PASSES else decision.reason
