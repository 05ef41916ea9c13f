"""The router process: wires intake, scheduler, dispatcher, follower and recovery, and ends them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack

import uvloop
from loguru import logger

from services.router.dispatcher import Dispatcher
from services.router.follower import Following, positions
from services.router.handover import Handover
from services.router.intake import IntakeLoop
from services.router.recovery import Recovery
from services.router.scheduler import Scheduler
from services.router.wakeup import Wakeup
from shared import config, heap, log
from shared.backends.http import HttpClient
from shared.config import Settings
from shared.ending import log_end
from shared.errors import ConfigError
from shared.file_watch import follow_file
from shared.keys import Keys
from shared.presence import Presence
from shared.reload import LiveSettings
from shared.store.client import connect_commands, connect_reader, wait_for_server
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.streams import Follower, Intake

_LAST_CALLS_S = 2.0
"""For the claims and acknowledgements under way when it is told to stop; jobs go on meanwhile."""
_LEAVE_S = 0.25


def main() -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly end, 1 if it can't run, 2 for a wrong setting."""
    try:
        settings = config.load(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"router: {error}\n")
        return 2
    log.configure("router", settings.log)
    try:
        uvloop.run(serve(settings))
    except ConfigError as error:
        logger.error("{}", error)
        return 2
    except Exception as error:
        log_end("router", error)
        return 1
    return 0


async def serve(settings: Settings) -> None:
    """Serve until a signal comes, then drain; the settings file is followed meanwhile."""
    live = LiveSettings.of(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        url = settings.redis.effective_url
        try:
            commands = connect_commands(url, "router")
        except ValueError as error:
            raise ConfigError(f"redis.url: {error}") from None
        stack.push_async_callback(commands.aclose)
        reader = connect_reader(url, "router")
        stack.push_async_callback(reader.aclose)
        http = HttpClient()
        stack.push_async_callback(http.aclose)
        checking = asyncio.create_task(wait_for_server(commands))
        if not await _unless_stopped(checking, stop):
            return
        for warning in checking.result():
            logger.warning("{}", warning)

        keys = Keys(settings.redis.namespace)
        jobs = JobStore(commands, keys, settings.history, settings.jobs.retention_s)
        fleet = FleetStore(commands, keys, settings.history)
        presence = Presence(
            fleet,
            service="router",
            host=config.host_name(os.environ),
            address=f"pid {os.getpid()}",
            explicit=os.environ.get("ORCH_INSTANCE"),
        )
        router = await presence.enroll()
        stack.push_async_callback(_leave, presence)
        logger.info("router {} is up, Redis at {}", router, url.rpartition("@")[2])

        wake, due = Wakeup(), Wakeup()
        dispatcher = Dispatcher(
            jobs,
            http,
            live,
            router=router,
            on_end=lambda attempt: scheduler.left(attempt),
            on_delay=due.ring,
        )
        scheduler = Scheduler(jobs, fleet, dispatcher, live, router=router, wake=wake)
        handover = Handover(jobs, dispatcher, scheduler.pictures, live, router)
        intake = IntakeLoop(Intake(reader, keys, router), jobs, fleet, live, scheduler.offer, handover)
        following = Following(
            Follower(reader, positions(keys)), keys, dispatcher, wake=wake, due=due, router=router
        )
        recovery = Recovery(jobs, fleet, lease_s=settings.router.lease_s, wake=wake, due=due)

        async def look_again() -> None:
            wake.ring()

        heap.settle()
        async with asyncio.TaskGroup() as group:
            # While it drains, a router still renews, follows cancels and tidies up, but takes nothing new.
            kept = [
                group.create_task(part.run())
                for part in (dispatcher, following, recovery, presence, scheduler.pictures)
            ]
            kept.append(group.create_task(follow_file(live, "router", os.environ, look_again)))
            intake_task = group.create_task(intake.run())
            scheduler_task = group.create_task(scheduler.run())
            await stop.wait()
            logger.info("router {} stops: {} jobs run", router, dispatcher.running)
            drained_at = loop.time() + settings.router.drain_s
            scheduler.stop()
            intake_task.cancel()
            # Cancelled only where Redis hangs: what a lost claim began is swept when its lease runs out.
            _, late = await asyncio.wait({intake_task, scheduler_task}, timeout=_LAST_CALLS_S)
            for task in late:
                task.cancel()
            await dispatcher.drain(max(0.0, drained_at - loop.time()))
            for task in kept:
                task.cancel()


async def _leave(presence: Presence) -> None:
    """Leave the list of services, unless Redis hangs: then the entry ages away."""
    try:
        async with asyncio.timeout(_LEAVE_S):
            await presence.retire()
    except TimeoutError:
        logger.debug("not retired: Redis does not answer")


async def _unless_stopped(task: asyncio.Task[list[str]], stop: asyncio.Event) -> bool:
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
