"""Our own stack as a contestant: Redis, monitor, router and api as real processes with a generated config."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from benchmarks.gateway_parts.processes import Bench, Unavailable, free_ports
from shared.process import ChildProcess
from shared.store.server import EmbeddedRedis

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("monitor", "router", "api")
_READY_S = 60.0


def start_stack(bench: Bench, name: str, backend: str) -> tuple[int, Mapping[str, ChildProcess]]:
    """The api's port and the parts by name, once the monitor has seen the stub; all end with the run.

    ``backend`` is what the stub is registered as: from a llama_cpp the answer is always streamed and
    gathered for clients that do not stream, to a vllm requests go as they came. Raises ``Unavailable``.
    """
    port, redis_port = free_ports(2)
    directory = bench.directory / name
    directory.mkdir()
    redis = EmbeddedRedis(redis_port, directory / "redis")
    parts: dict[str, ChildProcess] = {"redis": bench.keep(redis, redis.start)}
    config = {
        "redis": {"url": redis.url},
        "api": {"port": port},
        "gpu": {"source": "none"},
        "log": {"dir": str(directory / "logs")},
        "models": [
            {
                "name": "stub",
                "backend": backend,
                "url": f"http://127.0.0.1:{bench.stub_port}",
                "slots": 256,
                "context_tokens": 8192,
            }
        ],
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    environ = {"ORCH_CONFIG": str(path), "ORCH_HOST_NAME": "bench", "PYTHONPATH": str(ROOT)}
    for service in SERVICES:
        argv = [sys.executable, "-m", f"services.{service}"]
        parts[service] = bench.start(f"{name}-{service}", argv, environ)
    deadline = time.monotonic() + _READY_S
    while (standing := _standing(port)) != "resident":
        dead = [part for part, process in parts.items() if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            last = " ".join(parts[(dead or ["api"])[0]].last_lines(2))
            raise Unavailable(f"{', '.join(dead) or 'the stack'} not ready ({standing}): {last[-300:]}")
        time.sleep(0.1)
    return port, parts


def _standing(port: int) -> str:
    """What the api says of the stub (resident once the monitor has read it), or why it says nothing."""
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
    return str(models[0].get("residence")) if models else f"{answer.status}: no model yet"
