"""The monitor as a process: ``python -m services.monitor``, one for each GPU host."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial

import uvloop
from loguru import logger

from services.monitor.backends import BackendWatch
from services.monitor.host import HostView
from services.monitor.outbox import Outbox
from services.monitor.sampler import GpuSampler
from shared import config, heap, log
from shared.backends.session import open_session
from shared.config import Settings, host_name
from shared.ending import log_end
from shared.errors import ConfigError, StoreUnavailable
from shared.file_watch import follow_file
from shared.gpu.choice import choose_source
from shared.keys import Keys
from shared.presence import Presence
from shared.reload import LiveSettings
from shared.store.client import check_server, connect_commands
from shared.store.fleet import FleetStore

_TTL_INTERVALS = 5
_TTL_LEAST_S = 5.0
_ENROLL_AGAIN_S = 0.2
_RETIRE_S = 0.5
_NICER = 5
"""A round of probes is ten milliseconds of work, which no request should have to wait for on a busy core."""
_REUSE_S = 0.1
"""Longer than between the requests of one probe, too short to keep a server's thread from its clients."""


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly end, 1 if a part failed, 2 for a wrong setting."""
    try:
        settings = config.load(os.environ)
        log.configure("monitor", settings.log)
        os.nice(_NICER)
        uvloop.run(serve(settings, os.environ))
    except ConfigError as error:
        logger.error("{}", error)
        return 2
    except Exception as error:
        log_end("monitor", error)
        return 1
    return 0


async def serve(settings: Settings, environ: Mapping[str, str]) -> None:
    """Sample this host until a signal comes; raises what ``monitor`` raises."""
    work = asyncio.create_task(monitor(settings, environ))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    await asyncio.wait({work})
    if work.cancelled():
        logger.info("monitor stops as it was told to")
    else:
        work.result()


async def monitor(settings: Settings, environ: Mapping[str, str]) -> None:
    """Sample this host until cancelled; the settings file is followed meanwhile.

    Raises ``StoreUnusable``, ``InstanceTaken`` or ``ConfigError``, or a group with what went wrong in a loop;
    Redis being away is waited out.
    """
    live = LiveSettings.of(settings)
    host = HostView(host_name(environ), settings.backends.host)
    async with AsyncExitStack() as resources:
        try:
            # Fails fast, since what is tried again here is the newest reading, with its age of then.
            redis = connect_commands(settings.redis.effective_url, "monitor", fail_fast=True)
        except ValueError as error:
            raise ConfigError(f"redis.url: {error}") from None
        resources.push_async_callback(redis.aclose)
        store = FleetStore(redis, Keys(settings.redis.namespace), settings.history)
        explicit = environ.get("ORCH_INSTANCE")
        address = f"pid {os.getpid()}"
        presence = Presence(store, service="monitor", host=host.name, address=address, explicit=explicit)
        await _enroll(presence, partial(check_server, redis))
        resources.push_async_callback(_retire, presence)
        session = await resources.enter_async_context(open_session(reuse_s=_REUSE_S))
        source = await choose_source(settings, session)

        ttl_s = max(_TTL_LEAST_S, _TTL_INTERVALS * settings.gpu.interval_s)
        outbox = Outbox(store, presence.boot, ttl_s=ttl_s)
        watch = BackendWatch(session, store, host, live, environ, presence.boot)
        loops: list[Callable[[], Coroutine[None, None, None]]] = [presence.run, watch.run]
        if source is None:
            host.saw_gpus(())
            host.gpus_tried.set()
        else:
            resources.push_async_callback(source.aclose)
            loops += [outbox.run, GpuSampler(source, store, outbox, host, live).run]
        heap.settle()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow_file(live, "monitor", environ))
            for loop in loops:
                tasks.create_task(loop())


async def _enroll(presence: Presence, check: Callable[[], Awaitable[list[str]]]) -> None:
    """Take a name once Redis answers and may be used."""
    wanted = presence.instance
    waiting = False
    while True:
        try:
            warnings = await check()
            name = await presence.enroll()
        except StoreUnavailable as error:
            logger.log("DEBUG" if waiting else "WARNING", "waiting for Redis: {}", error)
            waiting = True
            await asyncio.sleep(_ENROLL_AGAIN_S)
        else:
            break
    for warning in warnings:
        logger.warning("{}", warning)
    logger.info("{} samples this host", name)
    if name != wanted:
        logger.warning("another monitor of this host lived seconds ago: two would write the same levels")


async def _retire(presence: Presence) -> None:
    """Leave the list of services, unless Redis doesn't answer: the entry then ages away."""
    try:
        async with asyncio.timeout(_RETIRE_S):
            await presence.retire()
    except TimeoutError:
        logger.debug("not retired: Redis does not answer")


if __name__ == "__main__":
    sys.exit(main())
