"""Intake: settle every entry of the request stream, whoever wrote it, and wake the scheduler."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from loguru import logger

from services.router.handover import Handover, is_handed
from shared.config import Settings
from shared.errors import InvalidRequest, StoreUnavailable
from shared.jobs import parse_entry
from shared.placement.orders import FIRST_LEASE_S
from shared.request_ids import taken
from shared.states import JobState
from shared.store.fleet import FleetStore
from shared.store.job_reads import is_id
from shared.store.jobs import JobStore, raw_fields
from shared.store.records import AdmitOutcome, Head, StreamEntry
from shared.store.streams import INTAKE_BLOCK_S, Intake
from shared.submission import check_known, new_job

_BATCH = 64
_RECLAIM_EVERY_S = 5.0
_RECLAIM_IDLE_MS = 10_000
"""An entry is settled within milliseconds of its delivery: after this long its reader is gone."""
_FORGET_IDLE_MS = 3_600_000
_AWAY_S = 0.5
_GATHER_S = 0.02
_LAST_ACKS_S = 1.0
REQUEST_TYPE = "job.request"
_WRITTEN = (
    *("target", "model", "agent_type", "mode", "priority", "prompt_tokens", "max_tokens"),
    *("min_context_tokens", "prefer_llama_cpp", "fallback", "deadline_ms", "attached_to"),
    *("request_id", "queued_event"),
)
"""Of an accepted job, by submit.lua."""


class IntakeLoop:
    """Reads requests through the consumer group and persists them before they are acked.

    ``offer`` is told that some came: those that say all that a decision needs, or none. ``handover`` gets
    those that only have to be run.
    """

    def __init__(
        self,
        intake: Intake,
        jobs: JobStore,
        fleet: FleetStore,
        settings: Settings,
        offer: Callable[[Sequence[Head]], None],
        handover: Handover,
    ) -> None:
        self._intake = intake
        self._jobs = jobs
        self._fleet = fleet
        self._settings = settings
        self._offer = offer
        self._handover = handover
        # Half of a first lease: what may have been handed over before that is taken before it is run.
        self._doubt_s = min(settings.router.lease_s, FIRST_LEASE_S) / 2
        self._last_read = (0, 0)
        self._reclaim_at = 0.0
        self._accepted: list[StreamEntry] = []
        self._arrived = asyncio.Event()

    async def run(self) -> None:
        """Read until cancelled; Redis being away is waited out and leaves nothing behind unread."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._acknowledge())
                group.create_task(self._read())
        finally:
            # Told to stop: what a hanging Redis does not take in time is read again by another router.
            self._handover.stop()
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(_LAST_ACKS_S):
                    await self._hand_back()

    async def _hand_back(self) -> None:
        """Ack what was accepted, and give back what a reply held that we did not wait for."""
        await self._handover.settled()
        await self._settle_accepted()
        while unseen := await self._intake.own_pending(_BATCH):
            await self._settle(unseen, in_doubt=True)
            await self._handover.settled()
            await self._settle_accepted()

    async def _read(self) -> None:
        while True:
            try:
                await self._start()
                unread_since, restarts = -math.inf, self._intake.restarts
                while True:
                    asked_at = time.monotonic()
                    entries = await self._intake.read(_BATCH)
                    await self._settle(entries, in_doubt=time.monotonic() - unread_since > self._doubt_s)
                    if self._intake.restarts != restarts:
                        restarts, unread_since = self._intake.restarts, -math.inf
                    elif not entries:
                        unread_since = asked_at + INTAKE_BLOCK_S  # there were none until then
                    elif len(entries) < _BATCH:
                        unread_since = asked_at  # there were no more by then
                    await self._reclaim()
            except StoreUnavailable as error:
                logger.warning("intake waits for Redis: {}", error)
                await asyncio.sleep(_AWAY_S)

    async def _start(self) -> None:
        # A reply lost with the connection leaves entries delivered to us but unseen: read them first (H3).
        await self._intake.ensure()
        after = "0"
        while pending := await self._intake.own_pending(_BATCH, after):
            await self._settle(pending, in_doubt=True)
            after = pending[-1].id

    async def _reclaim(self) -> None:
        now = time.monotonic()
        if now < self._reclaim_at:
            return
        self._reclaim_at = now + _RECLAIM_EVERY_S
        reclaimed = await self._intake.reclaim(idle_ms=_RECLAIM_IDLE_MS, count=_BATCH)
        # Its reader may have begun what it was handed, and have lost nothing but Redis: that is the sweep's.
        await self._settle(reclaimed, handed=False)
        for name in await self._intake.forget_idle_consumers(idle_ms=_FORGET_IDLE_MS):
            logger.info("intake forgot consumer {}: idle for over an hour, nothing pending", name)

    async def _settle(
        self, entries: Sequence[StreamEntry], *, in_doubt: bool = True, handed: bool = True
    ) -> None:
        if not entries:
            return
        for entry in entries:
            # Somebody may have set the group back, and then reads what has been read.
            place = _place(entry)
            again, self._last_read = place <= self._last_read, max(place, self._last_read)
            if handed and is_handed(entry):
                self._handover.take(entry, in_doubt=in_doubt or again)
        # What an api submitted waits in its queue already: it may be dispatched before its entry is acked.
        if not all(map(_runs_already, entries)):
            self._offer([_head(entry) for entry in entries if _can_be_decided_on(entry)])
        self._accepted += [entry for entry in entries if "job_id" in entry.fields]
        self._arrived.set()
        for entry in entries:
            if "job_id" not in entry.fields:
                await self._settle_foreign(entry)

    async def _acknowledge(self) -> None:
        """Ack what was accepted, many at a time: nobody waits for it, and unacked entries are read again."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(_GATHER_S)
            self._arrived.clear()
            try:
                await self._settle_accepted()
            except StoreUnavailable as error:
                logger.debug("acks wait for Redis: {}", error)
                self._arrived.set()
                await asyncio.sleep(_AWAY_S)

    async def _settle_accepted(self) -> None:
        while batch := {entry.id: entry for entry in self._accepted[:_BATCH]}:
            pairs = [(entry.id, entry.fields["job_id"]) for entry in batch.values()]
            for unknown in await self._jobs.acknowledge(pairs):
                await self._settle_unknown(batch[unknown])
            # Only now: had Redis failed, they would have to be acked again.
            self._accepted = [entry for entry in self._accepted if entry.id not in batch]

    async def _settle_unknown(self, entry: StreamEntry) -> None:
        fields = entry.fields
        outcome, reason = await self._jobs.admit_known(entry.id, fields["job_id"], raw_fields(fields))
        if outcome is AdmitOutcome.DEAD:
            logger.warning("request entry {} is a dead letter: {}", entry.id, reason)

    async def _settle_foreign(self, entry: StreamEntry) -> None:
        fields = entry.fields
        try:
            if fields.get("type") != REQUEST_TYPE:
                raise InvalidRequest(
                    "type", f"must be {REQUEST_TYPE!r}, not {fields.get('type', '')[:100]!r}"
                )
            if fields.get("v", "1") != "1":
                raise InvalidRequest("v", f"must be 1, not {fields['v'][:100]!r}")
            request = parse_entry(fields)
            check_known(request, await self._fleet.registrations())
            job = new_job(request, self._settings, f"x-{entry.id}", taken(fields.get("request_id")))
        except InvalidRequest as error:
            await self._jobs.admit_dead(entry.id, str(error), fields)
            logger.warning("request entry {} is a dead letter: {}", entry.id, error)
            return
        outcome, detail = await self._jobs.admit_new(
            entry.id, job, bound=self._settings.queue.bound, raw=raw_fields(fields)
        )
        if outcome is AdmitOutcome.DEAD:
            logger.warning("request entry {} is a dead letter: {}", entry.id, detail)
        self._offer(())


def _place(entry: StreamEntry) -> tuple[int, int]:
    at_ms, _, number = entry.id.partition("-")
    return int(at_ms), int(number)


def _can_be_decided_on(entry: StreamEntry) -> bool:
    """Whether submit.lua wrote it, as far as can be seen; the claim looks whether it is true of the job."""
    return is_id(entry.fields.get("job_id", ":")) and "queued_event" in entry.fields


def _head(entry: StreamEntry) -> Head:
    """What submit.lua wrote of a job, as a look at its queue would show it."""
    fields = {name: entry.fields[name] for name in _WRITTEN if name in entry.fields}
    return Head(entry.fields["job_id"], {**fields, "submitted_ms": entry.fields.get("ts_ms", "")})


def _runs_already(entry: StreamEntry) -> bool:
    """Whether the api that accepted this job started it in the same step."""
    return entry.fields.get("state") == JobState.RUNNING
