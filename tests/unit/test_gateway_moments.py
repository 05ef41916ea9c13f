"""A moment that all who have time share."""

from __future__ import annotations

import asyncio
import time

from services.api.gateway.moments import Moments

_LENGTH_S = 0.05


async def test_who_comes_during_a_moment_goes_on_at_its_end() -> None:
    moments, gone_on = Moments(_LENGTH_S), list[int]()

    async def one(number: int) -> None:
        await moments.wait()
        # Whoever waited for the same moment is told in the same turn of the loop.
        gone_on.append(number)

    began = time.monotonic()
    waits = [asyncio.create_task(one(number)) for number in range(3)]
    await waits[0]
    await asyncio.sleep(0)

    assert time.monotonic() - began >= _LENGTH_S * 0.99
    assert gone_on == [0, 1, 2]


async def test_the_next_one_begins_a_moment_of_its_own() -> None:
    moments = Moments(_LENGTH_S)
    await moments.wait()
    began = time.monotonic()
    await moments.wait()

    assert time.monotonic() - began >= _LENGTH_S * 0.99


async def test_one_that_leaves_takes_nobody_along() -> None:
    moments = Moments(_LENGTH_S)
    waits = [asyncio.create_task(moments.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()

    await asyncio.wait_for(waits[1], 10)
    assert waits[0].cancelled()
