"""A steady beat, and a bounded wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator


async def ticks(interval_s: float) -> AsyncIterator[None]:
    """Yield at once and then every ``interval_s`` without drift; missed beats are not made up for."""
    due = time.monotonic()
    while True:
        yield
        now = time.monotonic()
        due = max(due + interval_s, now)
        await asyncio.sleep(due - now)


async def happened(event: asyncio.Event, *, within_s: float) -> bool:
    """Wait for an event, but not longer than ``within_s``; whether it came."""
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
