"""The OpenAI-compatible surface: requests in, answers of the backends out, jobs in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from loguru import logger
from starlette.types import Receive, Scope, Send

from services.api.gateway import refusals
from services.api.gateway.asks import Ask, ClientLeft, read_ask
from services.api.gateway.catalog import Catalog
from services.api.gateway.client import Client
from services.api.gateway.dialects import Endpoint
from services.api.gateway.exchange import Exchange
from services.api.gateway.fastpath import FastPath
from services.api.gateway.leases import Leases
from services.api.gateway.lines import Attempt, Line, Switchboard
from services.api.gateway.moments import Moments
from services.api.gateway.outcomes import Cut, failure_of_cut
from services.api.gateway.parts import Parts
from services.api.gateway.redis_away import STORE_TIMEOUT_S
from services.api.gateway.refusals import Refusal
from services.api.gateway.room import Room
from services.api.gateway.turns import Turns
from services.api.gateway.unheard import Unheard
from services.api.registry import Registry
from shared.backends.http import HttpClient
from shared.config import Settings
from shared.errors import StoreUnavailable
from shared.persist import persist
from shared.presence import Presence
from shared.store.grants import Grant, Grants
from shared.store.jobs import JobStore

GRACE_S = 2.0
"""For answers that are being sent when the api stops: a second less than the server gives them."""
_LOOK_S = 1.0
_ATTEND_EVERY_S = 0.25
"""At the latest after this it is noticed that a client has left."""


class Gateway:
    """Answers the calls of ``dialects.ENDPOINTS`` while ``run`` runs.

    ``open_grants`` opens the reading end of what is told to a holder; ``usable`` is set once this process is
    among the services and has its final name.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: JobStore,
        fast: FastPath,
        registry: Registry,
        presence: Presence,
        usable: asyncio.Event,
        open_grants: Callable[[str], Grants],
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._fast = fast
        self._registry = registry
        self._presence = presence
        self._usable = usable
        self._open_grants = open_grants
        self._exchanges: set[Exchange] = set()
        self._catalog = Catalog(())
        self._parts: Parts | None = None
        self._room = Room()
        self._unheard = Unheard(jobs)
        self._stopping = False

    @property
    def holder(self) -> str:
        """What the jobs of this api are attached to."""
        return self._presence.holder

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._parts is not None and not self._stopping

    @property
    def open_requests(self) -> int:
        """How many requests, waiting or running, are not over yet."""
        return len(self._exchanges)

    @property
    def running(self) -> int:
        """How many answers backends work on for it."""
        return sum(not exchange.waits for exchange in self._exchanges)

    async def run(self) -> None:
        """Until cancelled."""
        await self._usable.wait()
        leases = Leases(self._jobs, self._settings.router.lease_s)
        fast = self._fast

        def accept(line: Line, attempt: Attempt) -> None:
            fast.pictures.took(attempt.grant.model)
            leases.keep(line, attempt)

        board = Switchboard(accept, self._give_back)
        holder = self.holder
        async with (
            aclosing(self._unheard),
            aclosing(HttpClient()) as http,
            asyncio.TaskGroup() as group,
        ):
            self._parts = Parts(
                self._settings,
                self._jobs,
                http,
                board,
                leases,
                self._unheard,
                fast,
                Moments(),
                Turns(),
                holder,
                lambda name: self._known().public_name(name),
            )
            group.create_task(board.run(self._open_grants(holder)))
            group.create_task(leases.run())
            group.create_task(fast.pictures.run())
            group.create_task(self._look_for_stalled())
            group.create_task(self._attend())

    def stop(self) -> None:
        """Take nothing more: what waits is refused now, what runs has ``GRACE_S`` to end."""
        self._stopping = True
        for exchange in list(self._exchanges):
            if exchange.waits:
                exchange.cut(Cut.STOPPING)
        asyncio.get_running_loop().call_later(GRACE_S, self._cut_all)

    async def answer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        started = time.monotonic()
        client = Client(receive, send, endpoint.dialect)
        with self._room.share() as share:
            try:
                ask = await read_ask(scope, receive, endpoint, self._settings.api.max_body_bytes, share)
                parts = self._ready()
                await self._check(ask)
            except ClientLeft:
                return
            except Refusal as refusal:
                await client.refuse(refusal)
                return
            exchange = Exchange(parts, ask, client, started)
            self._exchanges.add(exchange)
            try:
                await exchange.run()
            finally:
                self._exchanges.discard(exchange)

    async def catalog(self) -> Catalog:
        """The models that can be asked for; raises ``Refusal`` while Redis has not been read."""
        self._ready()
        return self._known()

    async def refreshed_catalog(self) -> Catalog:
        """The same, read from Redis now: another api may have registered one a moment ago."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await self._registry.refresh()
        except StoreUnavailable as error:
            raise refusals.store_away(error) from None
        except TimeoutError:
            raise refusals.store_away(StoreUnavailable("it does not answer in time")) from None
        return self._known()

    def _ready(self) -> Parts:
        if self._stopping:
            raise refusals.stopping()
        if self._parts is None:
            raise refusals.store_away(StoreUnavailable("it has not answered yet"))
        return self._parts

    def _known(self) -> Catalog:
        if self._catalog.of is not self._registry.known:
            self._catalog = Catalog(self._registry.known)
        return self._catalog

    async def _check(self, ask: Ask) -> None:
        why = ask.access and ask.access.refusal(ask.named)
        if why:
            # As OpenAI answers for models that a key may not use.
            raise Refusal(404, refusals.MODEL_NOT_FOUND, why, param="model")
        if self._known().knows(ask.named, ask.agent_type):
            return
        catalog = await self.refreshed_catalog()
        if not catalog.knows(ask.named, ask.agent_type):
            raise catalog.not_found(ask.named, ask.agent_type)

    async def _give_back(self, grant: Grant) -> None:
        logger.debug("job={} was granted after its client had left", grant.job_id)
        await persist(lambda: self._jobs.fail(grant.job_id, grant.attempt, failure_of_cut(Cut.GONE)))

    async def _look_for_stalled(self) -> None:
        while True:
            looked = time.monotonic()
            await asyncio.sleep(_LOOK_S)
            if time.monotonic() - looked > 2 * _LOOK_S:
                continue  # this process stood still itself: what its clients took is not known yet
            before = time.monotonic() - self._settings.router.idle_timeout_s
            for exchange in list(self._exchanges):
                since = exchange.client.sending_since
                if since is not None and since < before:
                    exchange.cut(Cut.STALLED)

    async def _attend(self) -> None:
        # Not from their beginning: most are answered in less, and to attend to one costs a task and a timer.
        while True:
            await asyncio.sleep(_ATTEND_EVERY_S)
            now = time.monotonic()
            for exchange in self._exchanges:
                exchange.attend(now)

    def _cut_all(self) -> None:
        for exchange in list(self._exchanges):
            exchange.cut(Cut.STOPPING)
