"""Our own stack as a contestant: Redis, monitor, router and api as real processes with a generated config."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gateway_parts.processes import Bench, Unavailable, free_ports
from shared.process import ChildProcess
from shared.store.server import EmbeddedRedis

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("monitor", "router", "api")
_READY_S = 60.0

Json = dict[str, Any]


def start_stack(bench: Bench, name: str, backend: str) -> tuple[int, Mapping[str, ChildProcess]]:
    """The api's port and the parts by name, once the monitor has seen the stub; all end with the run.

    ``backend`` is what the stub is registered as: from a llama_cpp the answer is always streamed and
    gathered for clients that do not stream, to a vllm requests go as they came. Raises ``Unavailable``.
    """
    (redis_port,) = free_ports(1)
    directory = bench.directory / name
    directory.mkdir()
    redis = EmbeddedRedis(redis_port, directory / "redis")
    parts: dict[str, ChildProcess] = {"redis": bench.keep(redis, redis.start)}
    port, environ = configured(directory, redis.local_url, [registration("stub", bench.stub_port, backend)])
    for service in SERVICES:
        parts[service] = start_service(bench, service, f"{name}-{service}", environ)
    await_resident(port, parts)
    return port, parts


def registration(name: str, port: int, backend: str = "llama_cpp") -> Json:
    """A stub as the configuration names it: with more slots than any load here asks for."""
    url = f"http://127.0.0.1:{port}"
    return {"name": name, "backend": backend, "url": url, "slots": 256, "context_tokens": 8192}


def configured(
    directory: Path, redis_url: str, models: Sequence[Json], gpu: Json | None = None
) -> tuple[int, dict[str, str]]:
    """The port that the api will have and the environment of all services of one stack."""
    (port,) = free_ports(1)
    config = {
        "redis": {"url": redis_url},
        "api": {"port": port},
        "gpu": gpu or {"source": "none"},
        "log": {"dir": str(directory / "logs")},
        "models": list(models),
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return port, {"ORCH_CONFIG": str(path), "ORCH_HOST_NAME": "bench", "PYTHONPATH": str(ROOT)}


def start_service(bench: Bench, service: str, name: str, environ: Mapping[str, str]) -> ChildProcess:
    """One process of one of our services."""
    return bench.start(name, [sys.executable, "-m", f"services.{service}"], environ)


def await_resident(port: int, parts: Mapping[str, ChildProcess]) -> None:
    """Wait until the api says that all models are there; raises ``Unavailable``."""
    deadline = time.monotonic() + _READY_S
    while (standing := _standing(port)) != "resident":
        dead = [part for part, process in parts.items() if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            last = " ".join(parts[(dead or ["api"])[0]].last_lines(2))
            raise Unavailable(f"{', '.join(dead) or 'the stack'} not ready ({standing}): {last[-300:]}")
        time.sleep(0.1)


def _standing(port: int) -> str:
    """What the api says of its models (resident once the monitor has read all), or why it says nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/gpu/models")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    models = json.loads(body).get("models") if answer.status == 200 else None
    if not models:
        return f"{answer.status}: no model yet"
    return " ".join(sorted({str(model.get("residence")) for model in models}))
