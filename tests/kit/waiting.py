"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

Truth = TypeVar("Truth")
_EVERY_S = 0.02
_PATIENCE_S = 30.0
"""Nearly all that is waited for takes a hundredth of it on an idle machine: the rest is for a busy one."""


@overload
async def wait_until(
    condition: Callable[[], Awaitable[Truth | None]], description: str, *, timeout_s: float = ...
) -> Truth: ...
@overload
async def wait_until(
    condition: Callable[[], Truth | None], description: str, *, timeout_s: float = ...
) -> Truth: ...
async def wait_until(
    condition: Callable[[], Any], description: str, *, timeout_s: float = _PATIENCE_S
) -> Any:
    """Poll ``condition`` until it is true and return what it said; fails with ``description`` in the end."""
    limit = time.monotonic() + timeout_s
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        assert time.monotonic() < limit, f"not within {timeout_s} s: {description} (last: {value!r})"
        await asyncio.sleep(_EVERY_S)
