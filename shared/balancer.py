"""Routing decisions inside one Python process: GPUs through NVML and the decision core, without Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import ValidationError

from shared.balancer_request import checked_request
from shared.balancer_values import (
    HOST,
    ModelStatus,
    RoutingDecision,
    Usage,
    is_here,
    model_of,
    routing_of,
    status_of,
)
from shared.config import MemoryThresholds, ThermalThresholds
from shared.decision.memory import MB_PER_GB
from shared.decision.routing import decide
from shared.decision.snapshot import Gpu, Rules, Snapshot
from shared.errors import InvalidRequest
from shared.gpu.nvml import NvmlSource
from shared.gpu.source import GpuSource
from shared.gpu_watch import GpuSample, GpuWatch
from shared.registry import SPECIFICATION_MODELS, Registration
from shared.states import BackendType, Mode
from shared.track_record import Answer, TrackRecord

__all__ = ["BackendType", "LoadBalancer", "ModelStatus", "RoutingDecision", "Usage", "get_load_balancer"]

_SPECIFIED_SPEED = {(entry.name, entry.vram_gb): entry.tokens_per_second for entry in SPECIFICATION_MODELS}
"""The specification's own figures for its models: 512 tokens of tiny-llama-1b (2.3 GB) take 2.5 s."""


@dataclass(slots=True)
class _Entry:
    registration: Registration
    record: TrackRecord


class LoadBalancer:
    """Models registered by hand, GPUs read on demand, and one decision per request.

    A registered model counts as resident. Registering, deciding and reading belong to one event loop at a
    time; ``request``, ``record_latency`` and ``record_failure`` may be called from any thread.
    """

    def __init__(
        self,
        source: GpuSource | None = None,
        *,
        interval_s: float = 1.0,
        memory_thresholds: MemoryThresholds | None = None,
        thermal_thresholds: ThermalThresholds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``source`` gives the GPU readings (default NVML), taken at most once per ``interval_s`` seconds."""
        _check_interval(interval_s)
        self._rules = Rules(
            memory_thresholds or MemoryThresholds(), thermal_thresholds or ThermalThresholds()
        )
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._changing = threading.Lock()
        self._watch = GpuWatch(
            NvmlSource() if source is None else source,
            host=HOST,
            interval_s=interval_s,
            memory=self._rules.memory,
            thermal=self._rules.thermal,
            pools_mb=self._pools_mb,
            clock=clock,
        )

    def register_model(
        self,
        name: str,
        backend: BackendType,
        vram_gb: float | None = None,
        port: int | None = None,
        **fields: Any,
    ) -> None:
        """Add a model, or replace one and keep what was learned of it.

        ``vram_gb`` in GB of 2^30 bytes; ``fields`` are those of a ``Registration`` (url, slots,
        context_tokens, agent_types, gpu, serves, tokens_per_second, ...). Raises ``InvalidRequest``.
        """
        fields.setdefault("tokens_per_second", _SPECIFIED_SPEED.get((name, vram_gb)))
        try:
            entry = Registration(name=name, backend=backend, vram_gb=vram_gb, port=port, **fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidRequest(where, str(first["msg"]).removeprefix("Value error, ")) from None
        known = self._entries.get(name)
        self._entries[name] = _Entry(entry, TrackRecord())
        if known is not None:
            known.registration = entry
            self._entries[name] = known

    def unregister_model(self, name: str) -> None:
        """Take a model away; its requests in flight end as they will. Raises ``InvalidRequest``."""
        self._entry(name)
        del self._entries[name]

    async def decide_model_and_backend(
        self,
        agent_type: str | None = None,
        prefer_llama_cpp: bool = False,
        min_context_tokens: int = 0,
        *,
        model: str | None = None,
        fallback: bool | None = None,
        prompt_tokens: int = 1,
        max_tokens: int = 512,
        priority: int = 5,
        mode: Mode | None = None,
        deadline_in_ms: float | None = None,
    ) -> RoutingDecision:
        """Decide on one request; nothing is reserved, see ``request``.

        ``model`` names one, and ``fallback`` says whether another will do (default: only if none is named).
        Raises ``InvalidRequest`` naming an argument that is wrong. Reads the GPUs first if that was not tried
        within the interval, and waits for that a second at most (the first time 5, a driver may have to wake
        its cards).
        """
        request = checked_request(
            model=model,
            agent_type=agent_type,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            min_context_tokens=min_context_tokens,
            prefer_llama_cpp=prefer_llama_cpp,
            priority=priority,
            mode=mode,
            fallback=model is None if fallback is None else fallback,
            deadline_in_ms=deadline_in_ms,
        )
        await self._watch.refresh()
        return routing_of(decide(self._snapshot(), request))

    @contextmanager
    def request(self, model_name: str) -> Iterator[Usage]:
        """Wrap the call to a model: it counts as in flight, and its end is recorded.

        An ``Exception`` counts as the model's failure and goes on; a cancellation tells nothing about it.
        Raises ``InvalidRequest`` for a model that is not registered.
        """
        entry, usage, started_s = self._entry(model_name), Usage(), self._clock()
        self._change(entry, TrackRecord.started)
        try:
            yield usage
        except Exception:
            self._change(entry, lambda record: record.failed(self._clock()))
            raise
        else:
            latency_ms = 1000 * (self._clock() - started_s)
            answer = Answer(latency_ms, usage.output_tokens, usage.prompt_tokens, usage.first_token_ms)
            self._change(entry, lambda record: record.succeeded(answer, self._clock()))
        finally:
            self._change(entry, TrackRecord.ended)

    def record_latency(
        self,
        model_name: str,
        latency_ms: float,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        first_token_ms: float | None = None,
    ) -> None:
        """Record a success without ``request``. Raises ``InvalidRequest``: unknown model, wrong figure."""
        answer = Answer(latency_ms, output_tokens, prompt_tokens, first_token_ms)
        self._change(self._entry(model_name), lambda record: record.succeeded(answer, self._clock()))

    def record_failure(self, model_name: str) -> None:
        """Record a failure without ``request``; after 3 in a row the model rests for 5 s, then 10, 20 ...

        Raises ``InvalidRequest`` for a model that is not registered.
        """
        self._change(self._entry(model_name), lambda record: record.failed(self._clock()))

    @asynccontextmanager
    async def monitoring(self, interval_s: float = 1.0) -> AsyncIterator[None]:
        """Read the GPUs every ``interval_s`` seconds while inside, so that no decision waits for them."""
        _check_interval(interval_s)
        async with self._watch.beating(interval_s):
            yield

    async def aclose(self) -> None:
        """Let go of the GPU source."""
        await self._watch.aclose()

    @property
    def samples(self) -> tuple[GpuSample, ...]:
        """The rolling window: the last 100 samples of each GPU, oldest first."""
        return self._watch.samples

    @property
    def gpus(self) -> Mapping[str, Gpu]:
        """Every GPU as last read, by id; empty where none was ever read, see ``gpu_trouble``."""
        return self._snapshot().gpus

    @property
    def gpu_trouble(self) -> str | None:
        """Why there are no readings now, None if there are or nothing was tried yet."""
        return self._watch.trouble

    @property
    def models(self) -> Mapping[str, ModelStatus]:
        """Every registered model, by name."""
        return {name: status_of(model) for name, model in self._snapshot().models.items()}

    def _snapshot(self) -> Snapshot:
        now_s = self._clock()
        models = {
            name: model_of(entry.registration, entry.record, self._placed_on(entry.registration), now_s)
            for name, entry in list(self._entries.items())
        }
        gpus = self._watch.gpus()
        for model in models.values():
            for gpu in model.gpus:
                gpus[gpu] = replace(gpus[gpu], in_flight=gpus[gpu].in_flight + model.in_flight)
        return Snapshot(models, gpus, self._rules)

    def _placed_on(self, entry: Registration) -> tuple[str, ...]:
        """The GPU that a model names, else the only one here; empty = unknown or elsewhere."""
        known = self._watch.uuids
        if entry.gpu is not None:
            wanted = str(entry.gpu).lower()
            found = [index for index, uuid in known.items() if wanted in (str(index), (uuid or "").lower())]
        else:
            found = list(known) if len(known) == 1 and is_here(entry) else []
        return tuple(self._watch.gpu_id(index) for index in found)

    def _pools_mb(self, index: int) -> list[float | None]:
        gpu = self._watch.gpu_id(index)
        entries = (entry.registration for entry in self._entries.values())
        pools = [entry for entry in entries if entry.backend is BackendType.VLLM]
        return [
            None if pool.vram_gb is None else pool.vram_gb * MB_PER_GB
            for pool in pools
            if gpu in self._placed_on(pool)
        ]

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._entries)) or "none yet"
            raise InvalidRequest("model_name", f"{name!r} is not registered; known: {known}")
        return entry

    def _change(self, entry: _Entry, change: Callable[[TrackRecord], TrackRecord]) -> None:
        with self._changing:
            entry.record = change(entry.record)


def get_load_balancer() -> LoadBalancer:
    """The one balancer of this process, made at the first call; it reads NVML.

    For another source of readings, or thresholds of your own, make a ``LoadBalancer``.
    """
    with _MAKING:
        return _of_this_process()


_MAKING = threading.Lock()


@cache
def _of_this_process() -> LoadBalancer:
    return LoadBalancer()


def _check_interval(interval_s: float) -> None:
    if not 0 < interval_s < float("inf"):
        raise InvalidRequest("interval_s", f"is {interval_s}: must be a finite number above 0")
