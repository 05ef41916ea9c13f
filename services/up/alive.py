"""``python -m services.up.alive SERVICE``: whether that service lives here; the containers' health check.

What counts is the heartbeat in Redis from under this container's own name, not that of another replica. The
api must answer as well: on ``/healthz``, since ``/readyz`` wants a key once there is one and tells of others.
The simulator has no heartbeat and only has to answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

from services.up import readiness
from shared import config
from shared.config import Settings
from shared.errors import ConfigError, OrchestratorError, StoreUnavailable
from shared.keys import Keys
from shared.store.client import connect_commands
from shared.store.fleet import HEARTBEAT_TTL_S, FleetStore

_SERVICES = ("api", "monitor", "router", "simulator")


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """0 if it lives; 1, and one line that says what is missing, if not."""
    parser = argparse.ArgumentParser(prog="python -m services.up.alive", description=__doc__)
    parser.add_argument("service", choices=_SERVICES)
    service = parser.parse_args(arguments).service
    try:
        trouble = missing(service, config.load(environ), environ)
    except OrchestratorError as error:
        trouble = str(error)
    print(trouble or f"{service} lives")
    return 1 if trouble else 0


def missing(service: str, settings: Settings, environ: Mapping[str, str]) -> str | None:
    """Why the service is not taken for alive; raises ``ConfigError`` where Redis can't be asked at all."""
    if service == "simulator":
        simulator = settings.simulator
        return readiness.unanswered("the simulator", simulator.host, simulator.port, "/health")
    if service == "api":
        silence = readiness.unanswered("the api", settings.api.host, settings.api.port, "/healthz")
        if silence:
            return silence
    return asyncio.run(_unheard(service, settings, config.host_name(environ)))


async def _unheard(service: str, settings: Settings, host: str) -> str | None:
    try:
        redis = connect_commands(settings.redis.effective_url, "alive", fail_fast=True, connections=1)
    except ValueError as error:
        raise ConfigError(f"redis.url: {error}") from None
    try:
        records = await FleetStore(redis, Keys(settings.redis.namespace)).services()
    except StoreUnavailable as error:
        return f"Redis does not answer ({error})"
    finally:
        await redis.aclose()
    ages = [record.age_ms for record in records if (record.service, record.host) == (service, host)]
    if not ages:
        return f"no {service} of {host} is on the list of services"
    if min(ages) >= HEARTBEAT_TTL_S * 1000:
        return f"the {service} of {host} was last heard of {min(ages) / 1000:.0f} s ago"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
