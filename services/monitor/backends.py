"""The backend loops: one for each model of this host, so that a slow server delays nobody. They never act."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import aiohttp
from loguru import logger

from services.monitor.host import HostView
from services.monitor.sample import flag, number
from services.monitor.ticks import happened, ticks
from shared.backends.kind import kind_of
from shared.backends.probe import Probe, Props, probe
from shared.config import Settings
from shared.errors import StoreUnavailable
from shared.registry import Registration
from shared.states import BackendType, Residence
from shared.store.fleet import BackendSample, FleetStore

TIMEOUT_S = 2.0
"""Longest one probe takes, all its requests together."""
_KIND_S = 1.0
"""Longest that asking for the kind of server takes, before the first probe and after each break."""
_REGISTRY_S = 1.0
_FIRST_GPUS_S = 6.0
"""How long the first probes wait for the first reading of the GPUs, to say at once where a model is."""


@dataclass(frozen=True, slots=True)
class _Watched:
    entry: Registration
    task: asyncio.Task[None]


class BackendWatch:
    """Probes every registered model of one host every ``gpu.interval_s`` and publishes what it saw.

    ``environ`` holds the API keys that registrations name; ``boot`` tells this process from its predecessor.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        store: FleetStore,
        host: HostView,
        settings: Settings,
        environ: Mapping[str, str],
        boot: str,
    ) -> None:
        self._session = session
        self._store = store
        self._host = host
        self._interval_s = settings.gpu.interval_s
        self._backends_host = settings.backends.host
        self._settings = settings
        self._environ = environ
        self._boot = boot
        self._seq = 0
        self._watched: dict[str, _Watched] = {}
        self._misplaced: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Probe until cancelled; an error in one loop ends them all."""
        async with asyncio.TaskGroup() as tasks:
            async for _ in ticks(_REGISTRY_S):
                await self._follow_registry(tasks)

    async def _follow_registry(self, tasks: asyncio.TaskGroup) -> None:
        try:
            registered = await self._store.registrations()
        except StoreUnavailable as error:
            logger.debug("registrations not read: {}", error)
            return
        finally:
            self._host.models_tried.set()
        entries = {entry.name: entry for entry in registered if self._host.owns(entry)}
        # Before anybody has registered anything, the file tells which vLLM pools are no sign of pressure.
        expected = self._settings.models if not registered else entries.values()
        self._host.saw_models(entry for entry in expected if self._host.owns(entry))
        for name, watched in list(self._watched.items()):
            if entries.get(name) != watched.entry:
                logger.info("model {} is registered {}", name, "anew" if name in entries else "no longer")
                watched.task.cancel()
                del self._watched[name]
        for name in entries.keys() - self._watched.keys():
            task = tasks.create_task(self._watch(entries[name]), name=f"probe {name}")
            self._watched[name] = _Watched(entries[name], task)

    async def _watch(self, entry: Registration) -> None:
        """Probe one model until cancelled."""
        await happened(self._host.gpus_tried, within_s=_FIRST_GPUS_S)
        url, api_key = entry.base_url(self._backends_host), self._api_key(entry)
        found: BackendType | None = None
        props: Props | None = None
        last = Residence.UNKNOWN
        async for _ in ticks(self._interval_s):
            # Where nobody said it, whatever answers after a break may be another kind than before.
            if props is None and (entry.backend is None or found is None):
                found = await self._kind(entry, url, api_key) or found
            started = time.monotonic()
            seen = await probe(
                self._session,
                url,
                entry.backend or found or BackendType.LLAMA_CPP,
                timeout_s=TIMEOUT_S,
                api_key=api_key,
                model=entry.upstream_name or entry.name,
                props=props,
            )
            props = seen.props
            if seen.residence is Residence.UNLOADED and self._host.loads(entry):
                seen = replace(seen, residence=Residence.LOADING)
            self._host.saw_residence(entry.name, seen.residence)
            if seen.residence is not last:
                _log_change(entry, found, last, seen)
                last = seen.residence
            await self._publish(entry, found, seen, started)

    async def _kind(self, entry: Registration, url: str, api_key: str | None) -> BackendType | None:
        """Which kind of server answers there now, also where the registration says it: that may be wrong."""
        found = await kind_of(self._session, url, timeout_s=_KIND_S, api_key=api_key)
        if found is None:
            return None
        self._host.saw_kind(entry.name, found)
        if entry.backend not in (None, found):
            logger.warning(
                "model {} is registered as {}, but what answers at {} says that it is {}: correct its "
                "'backend', or leave it out; until then it is treated as {}",
                entry.name,
                entry.backend,
                url,
                found,
                entry.backend,
            )
        return found

    async def _publish(
        self, entry: Registration, found: BackendType | None, seen: Probe, started: float
    ) -> None:
        self._seq += 1
        age_ms = round((time.monotonic() - started) * 1000)
        fields = _fields(seen, self._host.name)
        fields["backend"] = None if found is None else found.value
        if self._host.gpus_known:
            fields |= {"gpu": self._place(entry), "memory_mb": number(self._host.memory_mb(entry))}
        sample = BackendSample(entry.name, self._boot, self._seq, age_ms, fields)
        try:
            await self._store.publish_backend(sample)
        except StoreUnavailable as error:
            # Only the latest matters, and the next one comes soon.
            logger.debug("probe of {} not published: {}", entry.name, error)

    def _place(self, entry: Registration) -> str | None:
        gpus = self._host.gpus_of(entry)
        missing = (entry.name, str(entry.gpu))
        if not gpus and entry.gpu is not None and missing not in self._misplaced:
            self._misplaced.add(missing)
            logger.warning("model {} is registered for GPU {}, which is not on this host", *missing)
        return ",".join(gpus) or None

    def _api_key(self, entry: Registration) -> str | None:
        if entry.api_key_env is None:
            return None
        key = self._environ.get(entry.api_key_env)
        if not key:
            logger.warning(
                "model {}: its api_key_env {} is not set here, so it is probed without a key",
                entry.name,
                entry.api_key_env,
            )
        return key


def _fields(seen: Probe, host: str) -> dict[str, str | None]:
    return {
        "residence": seen.residence.value,
        "backend_running": number(seen.running),
        "backend_waiting": number(seen.waiting),
        "slots": number(seen.slots),
        "context_tokens": number(seen.context_tokens),
        "kv_use": number(seen.kv_use),
        "upstream_name": seen.upstream_name,
        "probe_error": seen.error,
        "probe_latency_ms": number(round(seen.latency_ms, 1)),
        "host": host,
        "simulated": flag(True) if seen.simulated else None,
    }


def _log_change(entry: Registration, found: BackendType | None, last: Residence, seen: Probe) -> None:
    logger.log(
        "WARNING" if seen.residence is Residence.FAILED else "INFO",
        "backend {} ({}{}) {} -> {}{}",
        entry.name,
        entry.backend or found or "of unknown kind",
        ", simulated" if seen.simulated else "",
        last,
        seen.residence,
        f": {seen.error}" if seen.error else "",
    )
