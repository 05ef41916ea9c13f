"""The slots of the simulated llama.cpp."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.slots import SlotPool
from tests.unit.strategies import PROPERTY


class Line:
    """Requests that take a slot and keep it until told to go."""

    def __init__(self, slots: int) -> None:
        self.seen: list[int] = []
        self.pool = SlotPool(slots, self.seen.append)
        self.served: list[int] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._go: dict[int, asyncio.Event] = {}

    def come(self, number: int) -> None:
        self._go[number] = asyncio.Event()
        self._tasks[number] = asyncio.create_task(self._serve(number))

    def finish(self, number: int) -> None:
        self._go[number].set()

    def leave(self, number: int) -> None:
        self._tasks[number].cancel()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _serve(self, number: int) -> None:
        async with self.pool.slot():
            self.served.append(number)
            await self._go[number].wait()


async def test_slots_are_given_in_the_order_of_arrival() -> None:
    line = Line(2)
    for number in range(5):
        line.come(number)
    await line.settle()
    assert (line.served, line.pool.running, line.pool.deferred) == ([0, 1], 2, 3)

    line.finish(1)
    line.finish(0)
    await line.settle()

    assert (line.served, line.pool.running, line.pool.deferred) == ([0, 1, 2, 3], 2, 1)
    assert line.pool.peak_running == 2
    await line.end()
    assert (line.pool.running, line.pool.deferred, line.seen[-1]) == (0, 0, 0)


async def test_one_that_leaves_the_line_lets_the_next_ones_up() -> None:
    line = Line(1)
    for number in range(3):
        line.come(number)
    await line.settle()

    line.leave(1)
    line.finish(0)
    await line.settle()

    assert (line.served, line.pool.running, line.pool.deferred) == ([0, 2], 1, 0)
    await line.end()


async def test_one_that_leaves_in_the_moment_of_its_turn_passes_the_slot_on() -> None:
    line = Line(1)
    for number in range(3):
        line.come(number)
    await line.settle()

    line.finish(0)
    await asyncio.sleep(0)  # slot 0 is handed to request 1, which has not woken up yet
    line.leave(1)
    await line.settle()

    assert (line.served, line.pool.running) == ([0, 2], 1)
    await line.end()


@PROPERTY
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["come", "finish", "leave"]), st.integers(0, 9)), max_size=40),
)
def test_no_slot_is_lost_or_given_twice_whatever_happens(slots: int, steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        line, known = Line(slots), set[int]()
        for step, number in steps:
            if step == "come" and number not in known:
                known.add(number)
                line.come(number)
            elif step != "come" and number in known:
                getattr(line, step)(number)
            if number % 2:
                await line.settle()
            assert 0 <= line.pool.running <= slots
        await line.end()
        assert (line.pool.running, line.pool.deferred) == (0, 0)

    asyncio.run(play())


@pytest.mark.parametrize("slots", [1, 4])
async def test_every_slot_has_its_own_number(slots: int) -> None:
    line = Line(slots)

    assert [slot.id for slot in line.pool.slots] == list(range(slots))
