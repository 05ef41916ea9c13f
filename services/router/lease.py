"""Keeping the lease of one attempt, and noticing when it should end."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum

from shared.errors import StoreUnavailable
from shared.store.jobs import JobStore
from shared.store.records import RenewOutcome

RENEWALS_PER_LEASE = 4
"""Four chances before the lease runs out (docket renews as often; one chance was streaq's weak spot)."""


class LeaseEnd(StrEnum):
    LOST = "lost"
    CANCEL = "cancel"


async def keep_lease(
    jobs: JobStore, job_id: str, attempt: int, lease_s: float, renew_now: asyncio.Event
) -> LeaseEnd:
    """Renew until the job is somebody else's, or to be cancelled, or could not be renewed for a whole lease.

    ``renew_now`` asks for a renewal ahead of time.
    """
    renewed = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(lease_s / RENEWALS_PER_LEASE):
                await renew_now.wait()
        except TimeoutError:
            pass
        renew_now.clear()
        left_s = lease_s - (time.monotonic() - renewed)
        asked = time.monotonic()
        try:
            # At least one try, however late we are: after a pause only Redis knows whether it is still ours.
            async with asyncio.timeout(max(left_s, lease_s / RENEWALS_PER_LEASE)):
                outcome = await jobs.renew(job_id, attempt, round(lease_s * 1000))
        except (StoreUnavailable, TimeoutError):
            if time.monotonic() - renewed >= lease_s:
                return LeaseEnd.LOST
            continue
        if outcome is RenewOutcome.STALE:
            return LeaseEnd.LOST
        if outcome is RenewOutcome.CANCEL:
            return LeaseEnd.CANCEL
        renewed = asked
