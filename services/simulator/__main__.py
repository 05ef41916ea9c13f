"""The simulator as a process: ``python -m services.simulator``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import uvloop
from loguru import logger

from services.simulator.host import SimulatedHost
from shared import config, log
from shared.errors import OrchestratorError
from shared.file_watch import follow_file
from shared.reload import LiveSettings


async def serve(settings: config.Settings) -> None:
    """Serve the simulated models until SIGTERM or SIGINT, and follow the settings file meanwhile.

    Raises ``OrchestratorError`` if it can't start.
    """
    live = LiveSettings.of(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    simulator = settings.simulator
    async with SimulatedHost(settings.registrations, simulator, host=simulator.host) as host:
        logger.warning("SIMULATED GPU and models: nothing here is real; control at {}", host.control_url)
        logger.info("GPU 0 {} ({:.0f} MB, simulated)", host.card.name, host.card.memory_total_mb)
        for backend in host.backends.values():
            logger.info("model {} at {} (simulated)", backend.name, backend.url)
        if not host.backends:
            logger.warning("no model is simulated: only the GPU is")
        async with asyncio.TaskGroup() as group:
            following = group.create_task(
                follow_file(live, "simulator", os.environ, lambda: host.follow(live.registrations))
            )
            await stop.wait()
            following.cancel()
        logger.info("stopping")


def main() -> int:
    """Run the process; the exit status is 1 if it could not start."""
    try:
        settings = config.load(os.environ)
        log.configure("simulator", settings.log)
        uvloop.run(serve(settings))
    except OrchestratorError as error:
        logger.error("{}", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
