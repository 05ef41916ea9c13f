"""Settings: one YAML file plus environment variables, validated as a whole whenever they are read."""

from __future__ import annotations

import difflib
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from shared.api_settings import ApiSettings, Section
from shared.errors import ConfigError
from shared.masking import HIDDEN, keep_secret, masked
from shared.registry import SPECIFICATION_MODELS, Registration
from shared.sections import (
    BackendSettings,
    GpuOverride,
    GpuSettings,
    HistorySettings,
    JobSettings,
    LogSettings,
    MemoryThresholds,
    QueueSettings,
    RedisSettings,
    RouterSettings,
    SimulatorSettings,
    ThermalThresholds,
)
from shared.yaml_text import parsed

__all__ = [
    "ENV_PREFIX",
    "RESERVED_ENV",
    "ApiSettings",
    "BackendSettings",
    "GpuOverride",
    "GpuSettings",
    "HistorySettings",
    "JobSettings",
    "LogSettings",
    "MemoryThresholds",
    "QueueSettings",
    "RedisSettings",
    "RouterSettings",
    "Settings",
    "SimulatorSettings",
    "ThermalThresholds",
    "host_name",
    "load",
    "parse",
]

ENV_PREFIX = "ORCH_"
RESERVED_ENV = frozenset({"ORCH_CONFIG", "ORCH_HOST_NAME", "ORCH_INSTANCE", "ORCH_API_URL", "ORCH_API_KEY"})
"""Variables with the prefix that are no settings: file path, GPU host's name, process's name, and which api
the command line calls with which key."""

_OF_PYYAML = (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
"""What PyYAML lets through for bytes that are no text, dates that are none, wrong tags, deep nesting."""

_SHOWN = 100
"""Characters of a wrong value or key that are shown."""
_MOST_ERRORS = 20


class Settings(Section):
    """Everything a process needs to know, from the file named by ``ORCH_CONFIG`` and the environment."""

    redis: RedisSettings = RedisSettings()
    api: ApiSettings = ApiSettings()
    gpu: GpuSettings = GpuSettings()
    gpus: tuple[GpuOverride, ...] = ()
    models: tuple[Registration, ...] = ()
    backends: BackendSettings = BackendSettings()
    router: RouterSettings = RouterSettings()
    queue: QueueSettings = QueueSettings()
    jobs: JobSettings = JobSettings()
    history: HistorySettings = HistorySettings()
    memory_thresholds: MemoryThresholds = MemoryThresholds()
    thermal_thresholds: ThermalThresholds = ThermalThresholds()
    simulator: SimulatorSettings = SimulatorSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _unique_models(self) -> Self:
        names = [model.name for model in self.models]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"models: {', '.join(doubled)} is registered twice: names must differ")
        return self

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The models of the file, or the specification's three (simulated) where it names none."""
        models = self.models or SPECIFICATION_MODELS
        return tuple(model.model_copy(update={"source": "file"}) for model in models)

    @property
    def simulates(self) -> bool:
        """Whether the simulator has anything to serve."""
        return any(model.simulated for model in self.registrations)


def host_name(environ: Mapping[str, str]) -> str:
    """The name of this GPU host: ``ORCH_HOST_NAME``, else the machine's."""
    return environ.get("ORCH_HOST_NAME") or socket.gethostname().split(".")[0] or "localhost"


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings of this process; what they hold or name of keys and passwords is hidden from now on.

    Raises ``ConfigError`` whose message names the key, the value and what is allowed.
    """
    data: dict[str, Any] = {}
    path = environ.get("ORCH_CONFIG")
    if path:
        data = _read_file(Path(path))
    _overlay(data, environ)
    settings = parse(data, path or "environment")
    _keep_secrets(settings, environ)
    return settings


def parse(data: Mapping[str, Any], origin: str) -> Settings:
    """Validate a mapping as settings; ``origin`` names it in the error."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        wrong = error.errors()
        said = [f"{origin}: {masked(_explain(item))}" for item in wrong[:_MOST_ERRORS]]
        if len(wrong) > _MOST_ERRORS:
            said.append(f"and {len(wrong) - _MOST_ERRORS} more")
        raise ConfigError("; ".join(said)) from None


def _keep_secrets(settings: Settings, environ: Mapping[str, str]) -> None:
    """Tell the log what it must never write: the keys of backends, the password of Redis."""
    for model in settings.registrations:
        if model.api_key_env:
            keep_secret(environ.get(model.api_key_env, ""))
    user, _, _ = settings.redis.effective_url.partition("://")[2].rpartition("@")
    keep_secret(user.partition(":")[2])


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}): set CONFIG to a readable file"
        ) from None
    except (yaml.YAMLError, *_OF_PYYAML) as error:
        raise ConfigError(f"{path}: is not YAML: {masked(_problem(error))}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of sections such as 'redis:' and 'models:'")
    # A section with everything in it commented out is a section left out.
    return {name: section for name, section in data.items() if section is not None}


def _problem(error: Exception) -> str:
    """What PyYAML says, without the lines of the file that it quotes: they may hold a password."""
    said = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        words = " ".join(part for part in (error.context, error.problem) if part)
        said = f"line {mark.line + 1}, column {mark.column + 1}: {words}"
    return " ".join(said.split())


def _overlay(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put ``ORCH_SECTION__KEY`` variables over the file's values; a value that is JSON counts as such."""
    for name, raw in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name in RESERVED_ENV:
            continue
        path = name[len(ENV_PREFIX) :].lower().split("__")
        section = data
        for step in path[:-1]:
            inner = section.setdefault(step, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{name}: '{step}' is not a section")
            section = inner
        section[path[-1]] = _env_value(raw)


def _env_value(raw: str) -> Any:
    if raw[:1] in ("[", "{"):
        try:
            return json.loads(raw)
        except ValueError:
            return raw
    return raw


def _explain(item: Any) -> str:
    path = ".".join(_shortened(str(step)) for step in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key '{_without_password(path)}'{_nearest(item['loc'])}"
    allowed = item["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    value = item["input"]
    if path.endswith("url") and isinstance(value, str):
        value = _without_password(value)
    shown = "" if item["type"] in ("missing", "value_error") else _shown(value)
    return f"{path or 'settings'}{shown}: {allowed}"


def _shown(value: Any) -> str:
    """A wrong value, briefly; of a mapping or a list only what it is: anything may stand in it."""
    if isinstance(value, Mapping):
        return f" is a mapping with {len(value)} keys"
    if isinstance(value, list | tuple | set):
        return f" is a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > _SHOWN:
        return f" is a number of {value.bit_length()} bits"  # Python refuses to write longer ones out
    # Masked before it is cut: half a password would look like none.
    return f" = {_shortened(masked(value))!r}" if isinstance(value, str) else f" = {_shortened(repr(value))}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _without_password(text: str) -> str:
    """Without what stands before an ``@``, however little it looks like a URL."""
    return f"{HIDDEN}@{text.rpartition('@')[2]}" if "@" in text else text


def _nearest(loc: tuple[int | str, ...]) -> str:
    known = list(_fields_at(loc[:-1]))
    close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    return f": did you mean '{close[0]}'?" if close else f": known here are {', '.join(known)}"


def _fields_at(loc: tuple[int | str, ...]) -> Mapping[str, Any]:
    model: type[BaseModel] = Settings
    for step in loc:
        if step == "models":
            return Registration.model_fields
        if step == "gpus":
            return GpuOverride.model_fields
        field = model.model_fields.get(str(step))
        if field is None or not isinstance(field.annotation, type):
            break
        if issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model.model_fields
