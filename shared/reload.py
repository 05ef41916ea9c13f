"""What a changed settings file changes in a running process: the one place that says what counts when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from shared.config import Settings
from shared.registry import Registration

_ALL = ("api", "router", "monitor")

RESTART: Mapping[str, tuple[str, ...]] = {
    "redis.url": _ALL,
    "redis.namespace": _ALL,
    "redis.embedded_port": _ALL,
    "api.host": ("api",),
    "api.port": ("api",),
    "api.insecure": ("api",),
    "api.require_key": ("api",),
    "api.allowed_hosts": ("api",),
    "api.cors_origins": ("api",),
    "api.trusted_proxies": ("api",),
    "gpu.source": ("api", "monitor"),
    "gpu.interval_s": _ALL,
    "backends.host": _ALL,
    "router.lease_s": ("api", "router"),
    "router.drain_s": ("router",),
    "jobs.retention_s": ("api", "router"),
    "history.requests": _ALL,
    "history.events": _ALL,
    "history.decisions": _ALL,
    "history.gpu_samples": _ALL,
    "history.backend_samples": _ALL,
    "history.dead": _ALL,
    "history.control": _ALL,
    "simulator.host": ("simulator",),
    "simulator.port": ("simulator", "monitor"),
    "simulator.gpu_name": ("simulator",),
    "simulator.memory_total_gb": ("simulator",),
    "simulator.foreign_gb": ("simulator",),
    "simulator.load_s": ("simulator",),
    "simulator.speedup": ("simulator",),
    "log.dir": (*_ALL, "simulator"),
}
"""The settings that are read at the start only, and by which services; all others take effect at once."""

BUILT_IN = "models: the file names none now, which stands for the built-in simulated ones"
NO_SIMULATOR = "models: the simulator, which simulated ones need, was not started with the rest"
OTHER_SOURCE = "gpu.source: 'auto' means another one now that simulated models have come or gone"


def takes_effect(key: str) -> str:
    """When a change of ``section.key`` counts, as docs/configuration.md says it."""
    services = RESTART.get(key)
    return "at once" if services is None else f"restart of {', '.join(services)}"


class LiveSettings(Settings):
    """The settings in effect now: whoever keeps this object reads at each use what the file says by then.

    Its sections are frozen as ever and are replaced as a whole.
    """

    model_config = ConfigDict(frozen=False)

    @staticmethod
    def of(settings: Settings) -> LiveSettings:
        """Those of the start."""
        return LiveSettings.model_construct(**_sections(settings))

    def take(self, settings: Settings) -> None:
        """Let these count from now on."""
        for name, section in _sections(settings).items():
            setattr(self, name, section)


@dataclass(frozen=True, slots=True)
class Restart:
    """A change that waits for a restart: which, and of which services."""

    what: str
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """``settings`` are those that count now: in them, what needs a restart is as it was.

    ``effects`` says in words what took effect; ``sections`` are those in which something did.
    """

    settings: Settings
    effects: tuple[str, ...]
    sections: frozenset[str]
    restarts: tuple[Restart, ...]


def compare(old: Settings, new: Settings, *, simulated: bool | None = None) -> Change:
    """What follows if a process that runs on ``old`` finds ``new`` in its file.

    ``simulated``: whether models were simulated at its start (None: as in ``old``), which chose the source of
    the GPU readings and whether ``make up`` started the simulator.
    """
    merged: dict[str, Any] = {}
    effects: list[str] = []
    sections: set[str] = set()
    restarts: list[Restart] = []
    for name, section in _sections(new).items():
        before = getattr(old, name)
        merged[name] = section
        if isinstance(section, BaseModel):
            kept = _waiting(name, before, section)
            merged[name] = section.model_copy(update={key: getattr(before, key) for key in kept})
            restarts += [Restart(f"{name}.{key}", RESTART[f"{name}.{key}"]) for key in kept]
            found = list(_keys(name, before, merged[name]))
        elif name == "models":
            if old.models and not new.models:
                merged[name] = old.models
                restarts.append(Restart(BUILT_IN, (*_ALL, "simulator")))
                continue
            found = _models(old.registrations, new.registrations)
        else:
            found = [] if before == section else [name]
        effects += found
        if found:
            sections.add(name)
    settings = Settings.model_construct(**merged)
    restarts += _simulation(settings, old.simulates if simulated is None else simulated)
    return Change(settings, tuple(effects), frozenset(sections), tuple(restarts))


def _simulation(settings: Settings, simulated: bool) -> Iterator[Restart]:
    """What waits since simulated models have come or gone; ``simulated``: whether there were any before."""
    if settings.simulates == simulated:
        return
    if settings.gpu.source == "auto":
        yield Restart(OTHER_SOURCE, ("simulator", "monitor"))
    elif settings.simulates and settings.gpu.source != "simulated":
        # Only the supervisor knows whether a simulator runs: one that does follows the file itself.
        yield Restart(NO_SIMULATOR, ("make up",))


def _sections(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in Settings.model_fields}


def _waiting(name: str, before: BaseModel, section: BaseModel) -> list[str]:
    """The keys of a section that have changed and need a restart."""
    return [
        key
        for key in type(section).model_fields
        if f"{name}.{key}" in RESTART and getattr(before, key) != getattr(section, key)
    ]


def _keys(name: str, before: BaseModel, section: BaseModel) -> Iterator[str]:
    for key in type(section).model_fields:
        was, now = getattr(before, key), getattr(section, key)
        if was != now:
            yield f"{name}.{key} {was} -> {now}"


def _models(before: Sequence[Registration], after: Sequence[Registration]) -> list[str]:
    old, new = ({entry.name: entry for entry in entries} for entries in (before, after))
    words = [f"model {name} added" for name in new if name not in old]
    for name, entry in new.items():
        fields = [key for key in Registration.model_fields if name in old and _differs(old[name], entry, key)]
        if fields:
            words.append(f"model {name} changed ({', '.join(fields)})")
    return words + [f"model {name} removed" for name in old if name not in new]


def _differs(one: Registration, other: Registration, field: str) -> bool:
    return bool(getattr(one, field) != getattr(other, field))
