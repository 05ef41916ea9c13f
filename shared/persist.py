"""What has happened is recorded however long Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from loguru import logger

from shared.errors import StoreUnavailable

_AWAY_S = 0.2
_Value = TypeVar("_Value")


async def persist(write: Callable[[], Awaitable[_Value]]) -> _Value:
    """Repeat a replay-safe write until Redis answers: what it records has happened already."""
    while True:
        try:
            return await write()
        except StoreUnavailable as error:
            logger.warning("an outcome waits for Redis: {}", error)
            await asyncio.sleep(_AWAY_S)
