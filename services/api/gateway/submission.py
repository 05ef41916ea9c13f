"""Making a request a job: accepted, and started at once where nobody waits."""

from __future__ import annotations

import asyncio
import time

from services.api.full import limit_reached
from services.api.gateway import refusals
from services.api.gateway.asks import Ask, attached_job
from services.api.gateway.lines import Line
from services.api.gateway.parts import Parts
from services.api.gateway.redis_away import STORE_TIMEOUT_S
from shared.canonical import log_decision
from shared.errors import StoreUnavailable
from shared.limit import Limit
from shared.store.records import SubmitOutcome


async def submit(parts: Parts, ask: Ask, line: Line) -> None:
    """Submit a request; raises ``StoreUnavailable``, and the ``Refusal`` of one that was not accepted.

    Should it be accepted without our hearing of it, it is cancelled behind us.
    """
    settings = parts.settings
    job = attached_job(ask, settings, line.job_id, parts.holder)
    asked_at = time.monotonic()
    try:
        with Limit(STORE_TIMEOUT_S):
            turn = ask.stream and await parts.turns.take()
            try:
                submitted, start = await parts.fast.submit(job, bound=settings.queue.bound)
            finally:
                if turn:
                    parts.turns.give()
    except (TimeoutError, asyncio.CancelledError) as error:
        parts.unheard.cancel(line.job_id)
        if isinstance(error, asyncio.CancelledError):
            raise
        raise StoreUnavailable("it does not answer in time") from None
    except StoreUnavailable:
        parts.unheard.cancel(line.job_id)  # its last reply may be what was lost
        raise
    if submitted.outcome is SubmitOutcome.LIMITED and job.limits is not None:
        raise refusals.key_limit(*limit_reached(job.limits, submitted))
    if submitted.outcome is SubmitOutcome.FULL:
        raise refusals.queue_full(settings.queue.bound, submitted.ended_per_s)
    # It may have ended meanwhile, cancelled by somebody.
    if start is not None and line.ended is None:
        # A key that counts its jobs may ask for the next one as soon as this one is answered.
        spare = start.spare and job.limits is None
        parts.board.started(line, start.grant(submitted.now_ms), asked_at, spare=spare)
        # Its dispatch line says it all; a second line for each request would cost as much again.
        log_decision(start.decision, line.job_id, ask.request_id, level="DEBUG", attempt=1)
