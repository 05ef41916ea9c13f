"""The api process: wires Redis, the follower and the HTTP server, and ends them in order."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager

import uvicorn
import uvloop
from loguru import logger

from services.api.app import create_app
from services.api.benchmark import Benchmarks
from services.api.benchmark_run import Parts
from services.api.gateway.fastpath import FastPath
from services.api.gateway.gateway import Gateway
from services.api.keyring import Keyring, warn_if_open
from services.api.registry import Registry
from services.api.state import ApiState
from services.api.upkeep import Upkeep
from services.api.waiting import JobFeed
from shared import config, heap, log
from shared.config import ApiSettings, Settings
from shared.ending import log_end
from shared.errors import ConfigError, OrchestratorError
from shared.file_watch import follow_file
from shared.keys import Keys
from shared.presence import Presence
from shared.reload import LiveSettings
from shared.store.api_keys import ApiKeyStore
from shared.store.benchmarks import BenchmarkStore
from shared.store.client import connect_commands, connect_reader, wait_for_server
from shared.store.control import ControlStore
from shared.store.fleet import FleetStore
from shared.store.grants import Grants
from shared.store.jobs import JobStore
from shared.store.records import StreamEntry
from shared.store.streams import Follower, read_range

_BACKLOG = 2048
_GRACE_S = 3
"""For answers that are being sent; whoever waits for a job is answered at once."""
_KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections: one that we close first fails their next request."""


class _CannotListen(OrchestratorError):
    """The address can't be listened on; the message names the setting."""


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers, which would end the process before anything is closed."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly end, 1 if it can't run, 2 for a wrong setting."""
    try:
        settings = config.load(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"api: {error}\n")
        return 2
    log.configure("api", settings.log)
    try:
        with listen(settings.api) as listener:
            uvloop.run(serve(settings, listener))
    except OrchestratorError as error:
        logger.error("{}", error)
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        log_end("api", error)
        wrong = error.subgroup(ConfigError) if isinstance(error, ExceptionGroup) else None
        return 1 if wrong is None else 2
    return 0


def listen(settings: ApiSettings) -> socket.socket:
    """The listening socket; raises ``OrchestratorError`` naming the setting if that can't be had."""
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            detail = "is taken by another program: stop it, or set api.port (in the file, or ORCH_API__PORT)"
        else:
            detail = f"cannot be listened on ({error.strerror}): set api.host and api.port to what can be"
        raise _CannotListen(f"api.port {port} on {host} {detail}") from None
    return listener


async def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve until a signal comes; raises groups of what ended it otherwise. The settings file is followed."""
    live = LiveSettings.of(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        state, upkeep = compose(live, stack)
        server = http_server(state)
        heap.settle()
        async with asyncio.TaskGroup() as group:
            followed = follow_file(
                live, "api", os.environ, lambda: state.registry.replace(live.registrations)
            )
            runs = (state.feed.run(), upkeep.run(), state.gateway.run(), followed)
            kept = [group.create_task(run) for run in runs]
            serving = group.create_task(server.serve(sockets=[listener]))
            host, port = listener.getsockname()[:2]
            redis = settings.redis.effective_url.rpartition("@")[2]
            warn_if_open(settings.api)
            logger.info("api listens on {}:{}, Redis at {}", host, port, redis)
            await stop.wait()
            logger.info("api stops")
            server.should_exit = True
            state.feed.close()
            state.gateway.stop()
            await asyncio.wait({serving})
            for task in kept:
                task.cancel()


def compose(settings: Settings, stack: AsyncExitStack) -> tuple[ApiState, Upkeep]:
    """The parts, wired; what must be closed enters ``stack``. Raises ``ConfigError`` for an unusable URL."""
    url = settings.redis.effective_url
    try:
        commands = connect_commands(url, "api", fail_fast=True)
        reader = connect_reader(url, "api")
        grants_reader = connect_reader(url, "api.grants", connections=1)
    except ValueError as error:
        raise ConfigError(f"redis.url: {error}") from None
    stack.push_async_callback(commands.aclose)
    stack.push_async_callback(reader.aclose)
    stack.push_async_callback(grants_reader.aclose)

    keys = Keys(settings.redis.namespace)
    fleet = FleetStore(commands, keys, settings.history)
    registry = Registry(fleet, settings.registrations)
    presence = Presence(
        fleet,
        service="api",
        host=config.host_name(os.environ),
        address=f"http://{settings.api.host}:{settings.api.port}",
        explicit=os.environ.get("ORCH_INSTANCE"),
    )
    history, retention_s = settings.history, settings.jobs.retention_s
    key_store = ApiKeyStore(commands, keys, history, retention_s)
    keyring = Keyring(key_store, settings.api, Follower(reader, {keys.control: "$"}))
    upkeep = Upkeep(lambda: wait_for_server(commands), registry, keyring, presence)
    stack.push_async_callback(upkeep.leave)

    async def read_events(start: str) -> list[StreamEntry]:
        return await read_range(commands, keys.events, start=start)

    jobs = JobStore(commands, keys, history, retention_s)
    feed = JobFeed(Follower(reader, {keys.events: "$"}))
    measured = BenchmarkStore(commands, keys, history, retention_s)
    benchmarks = Benchmarks(Parts(settings, jobs, fleet, measured, feed))
    stack.push_async_callback(benchmarks.close)
    fast = FastPath(jobs, fleet, settings, lambda: presence.instance)
    gateway = Gateway(
        settings,
        jobs,
        fast,
        registry,
        presence,
        upkeep.usable,
        lambda holder: Grants(grants_reader, keys, holder),
    )
    state = ApiState(
        settings=settings,
        jobs=jobs,
        fleet=fleet,
        fast=fast,
        control=ControlStore(commands, keys, history, retention_s),
        benchmarks=benchmarks,
        gateway=gateway,
        registry=registry,
        keyring=keyring,
        feed=feed,
        read_events=read_events,
        usable=upkeep.usable,
        config_file=os.environ.get("ORCH_CONFIG"),
    )
    return state, upkeep


def http_server(state: ApiState) -> uvicorn.Server:
    """The server of this state's app; it ends once its ``should_exit`` is set."""
    return _Server(
        uvicorn.Config(
            create_app(state),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
