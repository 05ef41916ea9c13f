"""The rolling window of samples."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Protocol

from fastapi import APIRouter, Query, Request, Response

from services.api import problems
from services.api.gpu_names import gpus_named
from services.api.history_bodies import History, HistoryQuery, ProbeSample, Sample
from services.api.parameters import KNOWN_ONCE
from services.api.problems import UNKNOWN_MODEL, Problem
from services.api.representations import number, one_of, whole
from services.api.state import ApiState, state_of
from services.api.status import nothing_sampled
from shared.decision.memory import MB_PER_GB
from shared.snapshots import snapshot_of
from shared.states import Pressure, Residence, Thermal
from shared.store.records import StreamEntry, View

router = APIRouter(tags=["gpu"], dependencies=[KNOWN_ONCE], responses=problems.responses(422))

_PAGE = 500


class _Stream(Protocol):
    def __call__(self, *, before: str, count: int) -> Awaitable[list[StreamEntry]]: ...


@router.get(
    "/v1/gpu/history",
    response_class=Response,
    responses={200: {"model": History}, **problems.responses(404, 422, 503)},
)
async def read_history(request: Request, query: Annotated[HistoryQuery, Query()]) -> Response:
    """The last samples of the GPUs, newest first; those that arrived late are marked."""
    state = state_of(request)
    async with state.store():
        view = await state.fleet.view(heads=0)
        gpus = _gpus(view, query, state)
        samples = await _newest(
            state.fleet.gpu_samples, query.limit, lambda fields: fields.get("gpu") in gpus
        )
        probes = None
        if query.model is not None:
            name = query.model
            probes = await _newest(
                state.fleet.backend_samples, query.limit, lambda fields: fields.get("model") == name
            )
    body = History(
        samples=[_sample(fields) for fields in samples],
        probes=None if probes is None else [_probe(fields) for fields in probes],
        gpus=sorted(gpus),
        detail=None if samples else _missing(view, query, state),
    )
    return Response(body.model_dump_json(), media_type="application/json")


def _gpus(view: View, query: HistoryQuery, state: ApiState) -> set[str]:
    """The GPUs that are meant; raises ``Problem`` (404) for a name that is none."""
    found = {gpu.id for gpu in view.gpus}
    if query.gpu is not None:
        found = gpus_named(query.gpu, found)
    if query.model is not None:
        models = snapshot_of(view, state.settings).models
        if query.model not in models:
            listed = ", ".join(sorted(models)) or "none yet"
            raise Problem(
                UNKNOWN_MODEL, f"model: no {query.model!r}; known: {listed}", field="model", known=models
            )
        found &= set(models[query.model].gpus)
    return found


async def _newest(
    read: _Stream, limit: int, wanted: Callable[[Mapping[str, str]], bool]
) -> list[Mapping[str, str]]:
    """The last ``limit`` entries to arrive that are wanted, newest first by the time they were taken."""
    found: list[Mapping[str, str]] = []
    before = "+"
    while len(found) < limit:
        page = await read(before=before, count=_PAGE)
        found += [entry.fields for entry in page if wanted(entry.fields)]
        if len(page) < _PAGE:
            break
        before = f"({page[-1].id}"
    return sorted(found[:limit], key=lambda fields: -(number(fields, "ts_ms") or 0))


def _missing(view: View, query: HistoryQuery, state: ApiState) -> str:
    if not view.gpus:
        return nothing_sampled(state.settings)
    if query.model is not None:
        return f"which GPU {query.model} is on is not known, or it has no samples any more"
    return "the samples are kept no longer"


def _sample(fields: Mapping[str, str]) -> Sample:
    used, total = number(fields, "memory_used_mb"), number(fields, "memory_total_mb")
    share = number(fields, "effective_utilization")
    return Sample(
        gpu=fields.get("gpu", ""),
        ts_ms=whole(fields, "ts_ms"),
        memory_used_gb=_gigabytes(used),
        memory_total_gb=_gigabytes(total),
        memory_available_gb=_gigabytes(number(fields, "memory_free_mb")),
        utilization_percent=round(used / total * 100, 2) if used is not None and total else None,
        effective_utilization_percent=None if share is None else round(share * 100, 2),
        gpu_utilization_percent=number(fields, "gpu_utilization_percent"),
        temperature_c=number(fields, "temperature_c"),
        power_draw_w=number(fields, "power_draw_w"),
        pressure=one_of(Pressure, fields.get("pressure")),
        thermal=one_of(Thermal, fields.get("thermal")),
        level_changed=fields.get("level_changed") == "1",
        late=fields.get("late") == "1",
        source=fields.get("source"),
    )


def _probe(fields: Mapping[str, str]) -> ProbeSample:
    return ProbeSample(
        model=fields.get("model", ""),
        ts_ms=whole(fields, "ts_ms"),
        residence=one_of(Residence, fields.get("residence")),
        backend_running=whole(fields, "backend_running"),
        backend_waiting=whole(fields, "backend_waiting"),
        kv_use=number(fields, "kv_use"),
        latency_ms=number(fields, "probe_latency_ms"),
        error=fields.get("probe_error") or None,
        simulated=fields.get("simulated") == "1",
    )


def _gigabytes(mb: float | None) -> float | None:
    return None if mb is None else round(mb / MB_PER_GB, 2)
