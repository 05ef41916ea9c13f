"""A process's name among the services, and the heartbeat that keeps it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from loguru import logger

from shared.errors import InstanceTaken, StoreUnavailable
from shared.store.fleet import HEARTBEAT_S, FleetStore

_MOST_ON_A_HOST = 64


class Presence:
    """One running service instance.

    Its name is ``ORCH_INSTANCE`` if set, else ``<service>-<host>``, numbered where that one is taken: names
    are stable, since a router's name is also its consumer's.
    """

    def __init__(
        self, fleet: FleetStore, *, service: str, host: str, address: str, explicit: str | None
    ) -> None:
        self._fleet = fleet
        self._service = service
        self._explicit = explicit
        self._base = f"{service}-{host}"
        self._entry: Mapping[str, str | int] = {
            "service": service,
            "address": address,
            "host": host,
            "version": package_version(),
        }
        self.boot = secrets.token_hex(8)
        self.instance = explicit or self._base

    async def enroll(self) -> str:
        """Take a name; raises ``InstanceTaken`` if the explicit one belongs to another live process."""
        names = [self._explicit] if self._explicit else self._candidates()
        for name in names:
            self.instance = name
            try:
                await self._fleet.heartbeat(name, self.boot, self._entry)
            except InstanceTaken:
                if name == names[-1]:
                    raise
            else:
                return name
        raise AssertionError("unreachable: there is at least one name")

    @property
    def holder(self) -> str:
        """What jobs are attached to: this very process, since another one may get its name."""
        return f"{self.instance}.{self.boot}"

    async def run(self) -> None:
        """Beat until cancelled; Redis being away is waited out.

        Raises ``InstanceTaken`` if we were silent for so long that another process took the name over: it is
        then also the consumer of that name, so this process must end.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self._fleet.heartbeat(self.instance, self.boot, self._entry)
            except StoreUnavailable as error:
                logger.debug("heartbeat not written: {}", error)

    async def retire(self) -> None:
        """Leave the list; a failure only means that the entry ages away."""
        try:
            await self._fleet.retire(self.instance, self.boot)
        except StoreUnavailable as error:
            logger.debug("not retired: {}", error)

    def _candidates(self) -> list[str]:
        return [self._base] + [f"{self._base}-{number}" for number in range(2, _MOST_ON_A_HOST)]


def package_version() -> str:
    """The installed version of this project, ``0`` from a bare checkout."""
    try:
        return version("gpu-orchestrator")
    except PackageNotFoundError:
        return "0"
