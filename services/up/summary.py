"""What a person reads once everything runs: what is where, whether it is simulated, what to try."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from services.up.readiness import base_url
from shared.config import Settings
from shared.keys import Keys
from shared.process import ChildProcess
from shared.store.server import EmbeddedRedis

Row = tuple[str, str, str, str]
"""Name, process id, address, log file."""


def simulates(settings: Settings) -> bool:
    """Whether the simulator is needed, for models or for the GPU."""
    return settings.simulates or settings.gpu.source == "simulated"


def row(process: ChildProcess, address: str) -> Row:
    return (process.name, f"pid {process.pid}", address, str(process.log_path))


def render(settings: Settings, effective: Path, redis: EmbeddedRedis | None, services: Sequence[Row]) -> str:
    """The whole text."""
    rows = [_redis_row(settings, redis), *services]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"gpu-orchestrator {version('gpu-orchestrator')} is ready: {base_url(settings.api)}",
        *([_loud(_simulated(settings))] if simulates(settings) else []),
        *("  " + "  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows),
        f"command line: {command_line()}   settings in effect: {effective}   stop: Ctrl-C",
        "try:",
        *(f"  {line}" for line in _to_try(settings, effective, redis)),
    ]
    return "\n".join(lines)


def command_line() -> str:
    """The path of ``gpu-orchestrator``, as short as it can be typed from here."""
    path = Path(sys.prefix) / "bin" / "gpu-orchestrator"
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _redis_row(settings: Settings, redis: EmbeddedRedis | None) -> Row:
    if redis is None:
        return ("redis", "-", f"{without_password(settings.redis.effective_url)} (redis.url)", "-")
    binary = redis.binary
    return row(redis, f"127.0.0.1:{redis.port} ({binary.path.name} {binary.version}, {binary.origin})")


def _to_try(settings: Settings, effective: Path, redis: EmbeddedRedis | None) -> list[str]:
    url = base_url(settings.api)
    if redis is None:
        client = f"ORCH_CONFIG={effective} {command_line()} redis"
    else:
        client = f"{'redis-cli' if shutil.which('redis-cli') else f'{command_line()} redis'} -p {redis.port}"
    job = '{"prompt": "Say hello.", "agent_type": "Chat", "max_tokens": 16}'
    return [
        f"curl -s '{url}/v1/jobs?wait=30' -H 'Content-Type: application/json' -d '{job}'",
        f"curl -s {url}/v1/gpu/status",
        f"{client} XREVRANGE {Keys(settings.redis.namespace).decisions} + - COUNT 3",
    ]


def _simulated(settings: Settings) -> str:
    names = [model.name for model in settings.registrations if model.simulated]
    models = f" and the models {', '.join(names)}" if names else ""
    return (
        f"SIMULATED, not real: the GPU{models}. For real ones list your models under `models:` in a file and "
        "run `CONFIG=file make up`."
    )


def _loud(text: str) -> str:
    terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"\033[1;33m{text}\033[0m" if terminal else text
