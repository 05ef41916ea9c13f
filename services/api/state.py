"""What the routes work with: one value, built by the composition root and handed to the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from services.api.benchmark import Benchmarks
from services.api.gateway.fastpath import FastPath
from services.api.gateway.gateway import Gateway
from services.api.gateway.redis_away import STORE_TIMEOUT_S
from services.api.keyring import Keyring
from services.api.registry import Registry
from services.api.waiting import JobFeed
from shared.config import Settings
from shared.errors import StoreUnavailable
from shared.limit import Limit
from shared.store.control import ControlStore
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore
from shared.store.records import JobRecord, StreamEntry


@dataclass(frozen=True, slots=True)
class ApiState:
    """``read_events`` reads a page of ``orch:jobs:events`` from an id on; ``usable``: Redis was checked.

    ``config_file`` is where ``settings`` came from, None without one.
    """

    settings: Settings
    jobs: JobStore
    fleet: FleetStore
    fast: FastPath
    control: ControlStore
    benchmarks: Benchmarks
    gateway: Gateway
    registry: Registry
    keyring: Keyring
    feed: JobFeed
    read_events: Callable[[str], Awaitable[list[StreamEntry]]]
    usable: asyncio.Event
    config_file: str | None

    @asynccontextmanager
    async def store(self) -> AsyncIterator[None]:
        """Bounds the time of the store calls inside; raises ``StoreUnavailable`` when they take too long."""
        if not self.usable.is_set():
            raise StoreUnavailable("it has not answered yet")
        try:
            with Limit(STORE_TIMEOUT_S):
                yield
        except TimeoutError:
            raise StoreUnavailable("it does not answer in time") from None

    async def job(self, job_id: str) -> JobRecord | None:
        """One job with its result; raises ``StoreUnavailable``."""
        async with self.store():
            return await self.jobs.get(job_id)


def state_of(request: Request) -> ApiState:
    """The state of the app that serves this request."""
    state: ApiState = request.app.state.api
    return state
