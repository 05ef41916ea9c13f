"""What is known of GPUs, models and services in Redis: samples in, one consistent view out, the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger
from redis.asyncio import Redis

from shared.config import HistorySettings
from shared.errors import InstanceTaken
from shared.keys import Keys
from shared.registry import Registration
from shared.states import BackendType
from shared.store.client import translating
from shared.store.history import History, read_history
from shared.store.records import (
    GpuView,
    Head,
    ModelView,
    ServiceRecord,
    StreamEntry,
    TargetView,
    View,
)
from shared.store.scripts import Scripts, encoded
from shared.store.streams import read_range

HEARTBEAT_S = 1.0
"""common.lua takes an api that said nothing for 3.5 s for gone: its clients went with it."""
HEARTBEAT_TTL_S = 10.0
"""A service that said nothing for this long is not counted as alive, and its name is free again."""


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of one GPU. ``fields`` are flat, units in the names; what is unknown is left out."""

    gpu: str  # "<host>/<index>"
    boot: str
    seq: int
    age_ms: int
    fields: Mapping[str, str]
    level: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BackendSample:
    """One probe of one backend. A field that is None is unknown now: its older value is dropped."""

    model: str
    boot: str
    seq: int
    age_ms: int
    fields: Mapping[str, str | None]


class FleetStore:
    """Samples, registrations and heartbeats; raises ``StoreUnavailable`` when Redis can't serve now."""

    def __init__(self, redis: Redis, keys: Keys, history: HistorySettings | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = Scripts(redis, keys, history or HistorySettings(), retention_s=86_400.0)
        self._parsed: dict[str, Registration | None] = {}

    async def publish_gpu(self, sample: GpuSample, *, ttl_s: float) -> tuple[str, int]:
        """Publish a reading and its levels; answers STORED, LATE or REPLAY, and the level's number."""
        order = {
            "id": sample.gpu,
            "boot": sample.boot,
            "seq": sample.seq,
            "age_ms": sample.age_ms,
            "ttl_ms": round(ttl_s * 1000),
            "fields": [item for pair in sample.fields.items() for item in pair],
            "level": dict(sample.level),
        }
        outcome, seq = await self._run("gpu_sample", encoded(order))
        return str(outcome), int(seq)

    async def publish_backend(self, sample: BackendSample) -> str:
        """Publish a probe; answers STORED or REPLAY."""
        order = {
            "model": sample.model,
            "boot": sample.boot,
            "seq": sample.seq,
            "age_ms": sample.age_ms,
            "fields": {name: value for name, value in sample.fields.items() if value is not None},
            "missing": [name for name, value in sample.fields.items() if value is None],
        }
        return str(await self._run("backend_sample", encoded(order)))

    async def level(self, gpu: str) -> Mapping[str, str]:
        """The level hash of a GPU, empty if it was never read."""
        async with translating(self._redis):
            fields: Any = await self._redis.hgetall(self._keys.of("gpu_level", gpu))
        return {**fields}

    async def view(self, *, heads: int) -> View:
        """Queues (``heads`` first jobs of each target), models and GPUs at one moment."""
        now, targets, models, gpus = await self._run("view", heads)
        return View(
            now_ms=int(now),
            targets=tuple(
                TargetView(name, int(waiting), hold, tuple(Head(job, _pairs(flat)) for job, flat in jobs))
                for name, waiting, hold, jobs in targets
            ),
            models=tuple(
                ModelView(registration, _pairs(flat), raw)
                for registration, raw, flat in ((self._parse(raw), raw, flat) for _, raw, flat in models)
                if registration is not None
            ),
            gpus=tuple(
                GpuView(gpu, _pairs(sample), _pairs(level), int(in_flight))
                for gpu, sample, level, in_flight in gpus
            ),
        )

    async def history(self, *, gpus: Sequence[str], models: Sequence[str]) -> History:
        """What forecasts are made from: the one-minute buckets of these GPUs and models."""
        return await read_history(self._redis, self._keys, gpus=gpus, models=models)

    async def gpu_samples(self, *, before: str, count: int) -> list[StreamEntry]:
        """Readings of all GPUs, the last to arrive first; ``before`` is ``+`` or ``(`` and an entry's id."""
        stream = self._keys.gpu_samples
        return await read_range(self._redis, stream, end=before, count=count, newest_first=True)

    async def backend_samples(self, *, before: str, count: int) -> list[StreamEntry]:
        """Probes of all models, likewise."""
        stream = self._keys.backend_samples
        return await read_range(self._redis, stream, end=before, count=count, newest_first=True)

    async def registrations(self) -> tuple[Registration, ...]:
        """Every model that is registered, by name."""
        async with translating(self._redis):
            stored: Any = await self._redis.hgetall(self._keys.models)
        parsed = (self._parse(raw) for _, raw in sorted(stored.items()))
        return tuple(registration for registration in parsed if registration is not None)

    async def kinds(self, models: Sequence[str]) -> Mapping[str, BackendType]:
        """The kind of server that its monitor found, of those of these models of which one did."""
        if not models:
            return {}
        async with translating(self._redis):
            pipe = self._redis.pipeline(transaction=False)
            for model in models:
                pipe.hget(self._keys.model(model), "backend")
            found: list[Any] = await pipe.execute()
        known = tuple(BackendType)
        return {model: BackendType(raw) for model, raw in zip(models, found, strict=True) if raw in known}

    async def register(self, entries: Sequence[Registration], *, replace_file: bool = False) -> list[str]:
        """Write registrations; with ``replace_file`` those of an earlier file go. The names that changed.

        A registration made over HTTP that a file takes over is warned of: nothing brings it back.
        """
        order = {
            "entries": {entry.name: entry.model_dump_json(exclude_defaults=True) for entry in entries},
            "replace_file": replace_file,
        }
        changed, taken_over = await self._run("register", encoded(order))
        for name in taken_over:
            logger.warning(
                "model {} was registered over HTTP; the settings file names it, so from now on it is the "
                "file's, and it goes when the file no longer names it",
                name,
            )
        return list(changed)

    async def heartbeat(self, instance: str, boot: str, entry: Mapping[str, str | int]) -> None:
        """Say that this instance lives; raises ``InstanceTaken`` if another live process has its name."""
        outcome = await self._run("heartbeat", instance, boot, encoded(entry), round(HEARTBEAT_TTL_S * 1000))
        if outcome == "TAKEN":
            raise InstanceTaken(
                f"another live process is registered as {instance!r}: set ORCH_INSTANCE to a name of its own"
            )

    async def retire(self, instance: str, boot: str) -> None:
        """Take this instance off the list of services."""
        await self._run("retire", instance, boot)

    async def services(self) -> tuple[ServiceRecord, ...]:
        """Every instance on the list, dead ones included (see ``age_ms``)."""
        async with translating(self._redis):
            pipe = self._redis.pipeline(transaction=False)
            pipe.time()
            pipe.hgetall(self._keys.services)
            (seconds, micros), stored = await pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        found = (_service(instance, raw, now_ms) for instance, raw in sorted(stored.items()))
        return tuple(record for record in found if record is not None)

    async def forget_services(self, *, older_than_s: float) -> None:
        """Drop instances that have been silent for long."""
        for record in await self.services():
            if record.age_ms > older_than_s * 1000:
                await self.retire(record.instance, record.boot)

    def _parse(self, raw: str) -> Registration | None:
        """Registrations repeat in every view: parse each text once.

        Fields that this version doesn't know are ignored; what can't be read is left out, and said once.
        """
        if raw not in self._parsed:
            if len(self._parsed) > 1000:
                self._parsed.clear()
            try:
                self._parsed[raw] = _registration(raw)
            except (ValueError, RecursionError) as error:
                logger.warning("orch:models holds what is no registration: {} ({})", raw[:200], error)
                self._parsed[raw] = None
        return self._parsed[raw]

    async def _run(self, name: str, *args: str | bytes | int) -> Any:
        async with translating(self._redis):
            return await self._scripts.run(name, *args)


def _pairs(flat: Any) -> Mapping[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _registration(raw: str) -> Registration:
    data = json.loads(raw)
    if not isinstance(data, dict):
        raise ValueError("no JSON object")
    return Registration.model_validate(
        {name: value for name, value in data.items() if name in Registration.model_fields}
    )


def _service(instance: str, raw: str, now_ms: int) -> ServiceRecord | None:
    """One entry of the list; None for what nobody of ours wrote."""
    try:
        entry = json.loads(raw)
        heartbeat_ms = int(entry.get("heartbeat_ms", 0))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return ServiceRecord(
        instance=instance,
        service=str(entry.get("service", "")),
        boot=str(entry.get("boot", "")),
        host=str(entry.get("host", "")),
        heartbeat_ms=heartbeat_ms,
        version=str(entry.get("version", "")),
        address=str(entry.get("address", "")),
        age_ms=max(0, now_ms - heartbeat_ms),
    )
