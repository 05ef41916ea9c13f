"""Upkeep that every replica does: lost leases, due retries, passed deadlines, trimming."""

from __future__ import annotations

from loguru import logger

from services.router.wakeup import Wakeup
from shared.errors import StoreUnavailable
from shared.store.fleet import FleetStore
from shared.store.jobs import JobStore

_EVERY_S = 1.0
_TRIM_EVERY = 5
_FORGET_EVERY = 60
_FORGET_SERVICES_S = 300.0
GRACE_SHARE = 0.5
"""A lease is swept half its length after it ran out, so that a router a little late keeps its job."""


class Recovery:
    """The janitor of one router; ``due`` is rung when this router delays a job."""

    def __init__(
        self, jobs: JobStore, fleet: FleetStore, *, lease_s: float, wake: Wakeup, due: Wakeup
    ) -> None:
        self._jobs = jobs
        self._fleet = fleet
        self._grace_ms = round(lease_s * GRACE_SHARE * 1000)
        self._overstay_ms = round(lease_s * 2 * 1000)
        self._wake = wake
        self._due = due

    async def run(self) -> None:
        """Tidy up every second until cancelled, and sooner where a retry is due."""
        round_number = 0
        while True:
            try:
                await self._tidy(round_number)
            except StoreUnavailable as error:
                logger.debug("upkeep waits for Redis: {}", error)
            round_number += 1
            await self._due.wait(_EVERY_S)

    async def _tidy(self, round_number: int) -> None:
        moved, next_in_ms = await self._jobs.promote()
        swept = await self._jobs.sweep(grace_ms=self._grace_ms)
        expired = await self._jobs.expire(overstay_ms=self._overstay_ms)
        for job_id in swept:
            logger.warning("sweep ended or took back job={}: nobody renewed its lease any more", job_id)
        for job_id in expired:
            logger.info("deadline passed for job={}", job_id)
        if moved or swept or expired:
            self._wake.ring()
        if next_in_ms is not None and next_in_ms < _EVERY_S * 1000:
            self._due.ring(next_in_ms / 1000)
        if round_number % _TRIM_EVERY == 0:
            await self._trim()
        if round_number % _FORGET_EVERY == 0:
            await self._fleet.forget_services(older_than_s=_FORGET_SERVICES_S)

    async def _trim(self) -> None:
        removed = 1
        while removed > 0:
            removed = await self._jobs.trim_requests()
