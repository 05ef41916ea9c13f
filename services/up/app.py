"""Puts the parts together: settings, Redis, ports, the list of children, their supervisor."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from loguru import logger

from services.up import lock, readiness, summary
from services.up.followed import FollowedFile
from services.up.ports import CannotStart, move_simulator, require_api_port, require_distinct_ports
from services.up.supervisor import Child, RestartPolicy, Supervisor
from shared import config, log
from shared.config import Settings
from shared.errors import ConfigError, OrchestratorError, StoreUnavailable
from shared.file_watch import COMPLETE
from shared.process import ChildProcess
from shared.store.client import check_server, connect_commands
from shared.store.server import EmbeddedRedis

DATA = Path("data")
"""Below the working directory, which for ``make up`` is the checkout."""


@dataclass(frozen=True, slots=True)
class Service:
    """One child as data; ``drains``: stopped first, with time to finish what it has begun."""

    name: str
    argv: tuple[str, ...]
    address: str = "-"
    drains: bool = False
    restart_base_s: float = 0.5


def services_of(settings: Settings) -> list[Service]:
    """The children in the order in which they are started."""

    def module(name: str) -> tuple[str, ...]:
        return (sys.executable, "-m", f"services.{name}")

    ports = [str(model.port) for model in settings.registrations if model.simulated and model.port]
    served = f", models on {', '.join(ports)}" if ports else ""
    simulator = Service("simulator", module("simulator"), f"127.0.0.1:{settings.simulator.port}{served}")
    return [
        *([simulator] if summary.simulates(settings) else []),
        Service("monitor", module("monitor")),
        Service("router", module("router"), drains=True),
        Service("api", module("api"), f"{settings.api.host}:{settings.api.port}", drains=True),
    ]


def run(
    environ: Mapping[str, str],
    services: Callable[[Settings], Sequence[Service]],
    ready_timeout_s: float = 30.0,
) -> int:
    """Run everything until told to stop.

    Returns 0 after an orderly stop, 1 where something is in the way or keeps dying, 2 for wrong settings.
    """
    try:
        settings = config.load(environ)
        require_distinct_ports(settings)
        held = lock.take(DATA)
    except OrchestratorError as error:
        # The log's file belongs to whoever holds the directory.
        print(f"gpu-orchestrator: {error}", file=sys.stderr)
        return _exit_status(error)
    with held:
        log.configure("up", settings.log)
        try:
            _run(settings, environ, services, ready_timeout_s)
        except OrchestratorError as error:
            logger.error("{}", error)
            return _exit_status(error)
    return 0


def _exit_status(error: OrchestratorError) -> int:
    return 2 if isinstance(error, ConfigError) else 1


def _run(
    settings: Settings,
    environ: Mapping[str, str],
    services: Callable[[Settings], Sequence[Service]],
    ready_timeout_s: float,
) -> None:
    logs = _logs(settings)
    redis = _redis(settings, logs)
    require_api_port(settings)
    wanted, settings = settings, _placed(settings, {})
    effective = write_effective(settings, DATA / "effective.yaml")
    followed = FollowedFile(wanted, environ, _rewrite(wanted, settings, effective))
    chosen = services(settings)
    child_environ = _child_environ(environ, effective, redis)
    processes = [
        ChildProcess(service.name, service.argv, logs / f"{service.name}.out", environ=child_environ)
        for service in chosen
    ]

    def announce() -> None:
        addresses = [service.address for service in chosen]
        rows = [summary.row(*pair) for pair in zip(processes, addresses, strict=True)]
        print(summary.render(settings, effective, redis, rows), flush=True)

    Supervisor(
        redis,
        [
            Child(process, service.drains, RestartPolicy(service.restart_base_s))
            for process, service in zip(processes, chosen, strict=True)
        ],
        missing=lambda: readiness.missing(settings.api),
        drain_s=settings.router.drain_s,
        ready_timeout_s=ready_timeout_s,
        beside=followed.look,
    ).run(announce)


def _placed(settings: Settings, moved: Mapping[int, int]) -> Settings:
    """What the children are to have: free ports for what is simulated, and a format for their logs."""
    if summary.simulates(settings):
        settings, moves = move_simulator(settings, moved)
        for move in moves:
            logger.warning(move)
    # The output of the children goes to files: only here is known whether a person at a terminal reads them.
    logged = settings.log.model_copy(update={"format": log.chosen_format(settings.log)})
    return settings.model_copy(update={"log": logged})


def _rewrite(wanted: Settings, placed: Settings, effective: Path) -> Callable[[Settings], None]:
    """Writes changed settings; what is simulated stays on the ports that it has got."""
    moved = {wanted.simulator.port: placed.simulator.port}
    current = wanted

    def write(changed: Settings) -> None:
        nonlocal current, placed
        pairs = zip(current.registrations, placed.registrations, strict=True)
        moved.update(
            {one.port: other.port for one, other in pairs if one.simulated and one.port and other.port}
        )
        current, placed = changed, _placed(changed, moved)
        write_effective(placed, effective)

    return write


def _logs(settings: Settings) -> Path:
    logs = Path(settings.log.dir)
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"log.dir = '{logs}': {error.strerror}: name a directory that can be written"
        ) from None
    return logs


def _redis(settings: Settings, logs: Path) -> EmbeddedRedis | None:
    if settings.redis.url is None:
        return EmbeddedRedis(settings.redis.embedded_port, DATA / "redis", log_path=logs / "redis.out")
    try:
        for warning in asyncio.run(_check(settings.redis.url)):
            logger.warning(warning)
    except ValueError as error:
        raise ConfigError(f"redis.url = {summary.without_password(settings.redis.url)!r}: {error}") from None
    except StoreUnavailable as error:
        raise CannotStart(
            f"redis.url {summary.without_password(settings.redis.url)} does not answer ({error}): "
            "start that Redis, or leave redis.url out for an embedded one"
        ) from None
    return None


async def _check(url: str) -> list[str]:
    client = connect_commands(url, "up", fail_fast=True)
    try:
        return await check_server(client)
    finally:
        await client.aclose()


def write_effective(settings: Settings, path: Path) -> Path:
    """Write what the children read; nobody else may read it, since a Redis URL can hold a password.

    Raises ``CannotStart`` where it cannot be written.
    """
    explicit = settings.model_copy(update={"models": settings.registrations})
    text = yaml.safe_dump(explicit.model_dump(mode="json", exclude_none=True), sort_keys=False)
    written = path.with_suffix(".new")
    try:
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text + COMPLETE)
        written.replace(path)  # in one step: the children follow it
    except OSError as error:
        raise CannotStart(
            f"{path.absolute()} cannot be written: {error.strerror}: move what is there out of the way"
        ) from None
    return path


def _child_environ(
    environ: Mapping[str, str], effective: Path, redis: EmbeddedRedis | None
) -> dict[str, str]:
    # Settings from the environment are in the file by now; a moved port must not be moved back by them.
    # An instance's name (ORCH_INSTANCE) belongs to one process, so that none of several can have it.
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(config.ENV_PREFIX) or name == "ORCH_HOST_NAME"
    }
    # Not in the file, which anybody may use: it leads to a Redis of ours for as long as that runs.
    reached = {} if redis is None else {"ORCH_REDIS__URL": redis.local_url}
    return {**kept, **reached, "ORCH_CONFIG": str(effective.absolute()), "PYTHONUNBUFFERED": "1"}
