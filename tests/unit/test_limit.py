"""A limit ends what takes too long, and nothing else; it behaves as asyncio.timeout does."""

from __future__ import annotations

import asyncio
import time

import pytest

from shared.limit import Limit, deadlines


def _cancelling() -> int:
    """How many cancellations of the running task are still to be heeded."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_work_in_time_is_left_alone() -> None:
    with Limit(30.0) as limit:
        await asyncio.sleep(0)
    assert not limit.expired
    assert _cancelling() == 0


async def test_work_that_takes_too_long_ends_with_a_timeout() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError), Limit(0.05) as limit:
        await asyncio.Event().wait()
    assert limit.expired
    assert time.monotonic() - begun >= 0.05
    assert _cancelling() == 0
    await asyncio.sleep(0)  # nothing is left that would end what comes behind it


@pytest.mark.parametrize("seconds", [0.0, -5.0])
async def test_one_that_is_over_already_ends_at_the_first_wait(seconds: float) -> None:
    turns = list[int]()

    async def work() -> None:
        for turn in range(1000):
            turns.append(turn)
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError), Limit(seconds):
        await work()
    assert len(turns) <= 2


async def test_the_inner_of_two_ends_first_and_the_outer_goes_on() -> None:
    with Limit(30.0) as outer:
        with pytest.raises(TimeoutError), Limit(0.02):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
    assert not outer.expired


async def test_an_outer_one_ends_what_is_in_the_inner() -> None:
    with pytest.raises(TimeoutError), Limit(0.02) as outer, Limit(30.0) as inner:
        await asyncio.Event().wait()
    assert (outer.expired, inner.expired) == (True, False)


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    async def work() -> None:
        with Limit(30.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_a_cancellation_and_a_cut_at_once_the_cancellation_counts() -> None:
    limit = Limit(30.0)

    async def work() -> None:
        with limit:
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    limit.overdue()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cut_ends_it_from_outside() -> None:
    limit = Limit(30.0)
    asyncio.get_running_loop().call_soon(limit.cut)
    with pytest.raises(TimeoutError), limit:
        await asyncio.Event().wait()
    assert limit.expired


async def test_a_cut_of_ones_own_that_comes_too_late_ends_nothing_else() -> None:
    with Limit(30.0) as limit:
        limit.cut()
    turn = asyncio.Event()
    asyncio.get_running_loop().call_soon(turn.set)  # behind the cut
    await turn.wait()
    assert _cancelling() == 0


async def test_an_error_of_the_work_is_its_own() -> None:
    with pytest.raises(TimeoutError, match="mine"), Limit(30.0):
        raise TimeoutError("mine")


async def test_many_that_end_in_time_leave_nothing_to_look_after() -> None:
    async def work() -> None:
        with Limit(30.0):
            await asyncio.sleep(0)

    await asyncio.gather(*(work() for _ in range(500)))
    assert not deadlines()._watched


def test_it_needs_a_task() -> None:
    with pytest.raises(RuntimeError), Limit(1.0):
        pass


def test_every_loop_has_its_own() -> None:
    async def run() -> None:
        with pytest.raises(TimeoutError), Limit(0.01):
            await asyncio.Event().wait()

    for _ in range(2):
        asyncio.run(run())
