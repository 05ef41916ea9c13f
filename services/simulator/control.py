"""The control port: reads and changes the simulated GPU and the simulated models over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Self, TypeVar

from aiohttp import web
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from services.simulator.backend import SimulatedBackend
from services.simulator.card import UUID, Card
from services.simulator.faults import Fault, FaultKind
from services.simulator.listener import Handler
from services.simulator.vllm_backend import VllmBackend
from shared.states import Residence

Mb = Annotated[float, Field(ge=0)]
Celsius = Annotated[float, Field(ge=0, le=150)]
Patch = TypeVar("Patch", bound=BaseModel)
_VLLM_ONLY = frozenset({"paused", "kv_blocks", "max_queued"})


class GpuPatch(BaseModel):
    """What ``PATCH /gpu`` takes: a number pins a reading, null lets it go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_used_mb: Mb | None = None
    utilization: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of memory in use: another way to say ``memory_used_mb``."""
    foreign_mb: Mb | None = None
    temperature_c: Celsius | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if {"memory_used_mb", "utilization"} <= self.model_fields_set:
            raise ValueError("give memory_used_mb or utilization, not both: they pin the same reading")
        return self


class ModelPatch(BaseModel):
    """What ``PATCH /models/{name}`` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    load_s: Annotated[float, Field(ge=0)] | None = None
    residence: Residence | None = None
    fault: Fault | None = None
    paused: bool | None = None
    """vLLM: what ``POST /pause?mode=keep`` and ``POST /resume`` do."""
    kv_blocks: Annotated[int, Field(ge=1)] | None = None
    """vLLM: size of the KV cache."""
    max_queued: Annotated[int, Field(ge=1)] | None = None
    """vLLM: how many requests may be inside before admission control answers 503."""

    @field_validator("fault", mode="before")
    @classmethod
    def _healing(cls, value: object) -> object:
        """``{"kind": null}`` heals, like ``null``."""
        return None if value == {"kind": None} else value

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        allowed = (None, Residence.RESIDENT, Residence.UNLOADED, Residence.SLEEPING)
        if self.residence not in allowed:
            raise ValueError("residence: give resident (loads it), unloaded or sleeping")
        return self


class _Problem(Exception):
    def __init__(self, status: int, message: str, known: list[str]) -> None:
        super().__init__(message)
        self.body: dict[str, JsonValue] = {"error": {"message": message, "known": list(known)}}
        self.status = status


def control_app(card: Card, backends: Mapping[str, SimulatedBackend]) -> Handler:
    """The handler of the control port."""
    control = _Control(card, backends)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return _json(await control.answer(request))
        except _Problem as problem:
            return _json(problem.body, problem.status)

    return handle


class _Control:
    def __init__(self, card: Card, backends: Mapping[str, SimulatedBackend]) -> None:
        self._card = card
        self._backends = backends
        self._routes: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[JsonValue]]] = {
            ("GET", "/gpu"): self._gpu,
            ("PATCH", "/gpu"): self._patch_gpu,
            ("GET", "/models"): self._models,
            ("GET", "/health"): self._health,
        }

    async def answer(self, request: web.BaseRequest) -> JsonValue:
        route = self._routes.get((request.method, request.path))
        if route is not None:
            return await route(request)
        if request.path.startswith("/models/") and request.method in ("GET", "PATCH"):
            return await self._model(request, self._named(request.path.removeprefix("/models/")))
        known = [f"{method} {path}" for method, path in self._routes]
        raise _Problem(
            404,
            f"there is no {request.method} {request.path}",
            [*known, "GET /models/{name}", "PATCH /models/{name}"],
        )

    def _named(self, name: str) -> SimulatedBackend:
        backend = self._backends.get(name)
        if backend is None:
            raise _Problem(404, f"there is no simulated model {name!r}", sorted(self._backends))
        return backend

    async def _health(self, _: web.BaseRequest) -> JsonValue:
        return {"status": "ok", "simulated": True}

    async def _gpu(self, _: web.BaseRequest) -> JsonValue:
        return [_gpu_reading(self._card)]

    async def _patch_gpu(self, request: web.BaseRequest) -> JsonValue:
        patch = await _parse(request, GpuPatch)
        given = patch.model_fields_set
        if "memory_used_mb" in given:
            self._card.pins.memory_used_mb = patch.memory_used_mb
        if "utilization" in given:
            share = patch.utilization
            self._card.pins.memory_used_mb = None if share is None else share * self._card.memory_total_mb
        if "foreign_mb" in given:
            self._card.pins.foreign_mb = patch.foreign_mb
        if "temperature_c" in given:
            self._card.pins.temperature_c = patch.temperature_c
        return [_gpu_reading(self._card)]

    async def _models(self, _: web.BaseRequest) -> JsonValue:
        return [_model_reading(backend) for backend in self._backends.values()]

    async def _model(self, request: web.BaseRequest, backend: SimulatedBackend) -> JsonValue:
        if request.method == "PATCH":
            await _apply(await _parse(request, ModelPatch), backend)
        return _model_reading(backend)


def _check_kind(patch: ModelPatch, backend: SimulatedBackend) -> None:
    given = sorted(patch.model_fields_set & _VLLM_ONLY)
    if patch.fault is not None and patch.fault.kind is FaultKind.ENGINE_DEATH:
        given.append("fault.kind engine_death")
    if given and not isinstance(backend, VllmBackend):
        known = sorted(set(ModelPatch.model_fields) - _VLLM_ONLY)
        raise _Problem(422, f"{', '.join(given)}: {backend.name} is simulated as llama.cpp, not vLLM", known)


async def _apply(patch: ModelPatch, backend: SimulatedBackend) -> None:
    _check_kind(patch, backend)
    if isinstance(backend, VllmBackend):
        backend.model.limit(kv_blocks=patch.kv_blocks, max_queued=patch.max_queued)
        if patch.paused is not None:
            await backend.pause(paused=patch.paused)
    if patch.tokens_per_second is not None:
        backend.state.tokens_per_second = patch.tokens_per_second
    if patch.load_s is not None:
        backend.state.load_s = patch.load_s
    if "fault" in patch.model_fields_set:
        await backend.set_fault(patch.fault)
    if patch.residence is Residence.RESIDENT:
        await backend.load()
    elif patch.residence is Residence.UNLOADED:
        await backend.unload()
    elif patch.residence is Residence.SLEEPING:
        await backend.sleep()


async def _parse(request: web.BaseRequest, schema: type[Patch]) -> Patch:
    try:
        return schema.model_validate_json(await request.content.read())
    except ValidationError as error:
        item = error.errors()[0]
        path = ".".join(str(step) for step in item["loc"])
        message = f"{path}: {item['msg']}" if path else item["msg"]
        raise _Problem(422, message, list(schema.model_fields)) from None


def _gpu_reading(card: Card) -> dict[str, JsonValue]:
    processes: list[JsonValue] = [
        {"pid": None, "name": holder.name, "memory_mb": holder.memory_mb} for holder in card.holders
    ]
    return {
        "index": 0,
        "uuid": UUID,
        "name": card.name,
        "memory_total_mb": card.memory_total_mb,
        "memory_used_mb": round(card.memory_used_mb, 1),
        "memory_free_mb": round(card.memory_total_mb - card.memory_used_mb, 1),
        "utilization_percent": round(100.0 * card.utilization, 1),
        "temperature_c": round(card.temperature_c, 1),
        "power_draw_w": round(card.power_draw_w, 1),
        "power_limit_w": card.power_limit_w,
        "fan_percent": round(card.fan_percent, 1),
        "thermal_slowdown": card.thermal_slowdown,
        "processes": processes,
        "simulated": True,
    }


def _model_reading(backend: SimulatedBackend) -> dict[str, JsonValue]:
    state, counters = backend.state, backend.counters
    fault = state.fault
    return {
        "name": backend.name,
        "port": backend.port,
        "residence": backend.residence.value,
        "vram_gb": state.vram_gb,
        "slots": state.slots,
        "context_tokens": state.context_tokens,
        "tokens_per_second": state.tokens_per_second,
        "load_s": state.load_s,
        "running": backend.running,
        "deferred": backend.deferred,
        "peak_running": backend.peak_running,
        "received": counters.received,
        "served": counters.served,
        "struck": counters.struck,
        "abandoned": counters.abandoned,
        "fault": None if fault is None else fault.model_dump(mode="json", exclude_none=True),
        "simulated": True,
    }


def _json(body: JsonValue, status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers={"X-Simulated": "true"})
