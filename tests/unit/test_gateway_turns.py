"""A few at a time, in their order, and nobody behind one that does not come back."""

from __future__ import annotations

import asyncio

from services.api.gateway.turns import Turns


async def test_as_many_as_there_are_turns_go_at_once_and_the_others_in_their_order() -> None:
    turns, began = Turns(at_once=2, patience_s=60), list[int]()

    async def one(number: int) -> None:
        assert await turns.take()
        began.append(number)

    waits = [asyncio.create_task(one(number)) for number in range(5)]
    await asyncio.wait(waits[:2])
    assert began == [0, 1]
    for _ in range(3):
        turns.give()
    await asyncio.wait(waits)
    assert began == [0, 1, 2, 3, 4]


async def test_who_has_waited_long_enough_goes_on_without() -> None:
    turns = Turns(at_once=1, patience_s=0.01)
    assert await turns.take()

    assert not await turns.take()
    turns.give()
    assert await turns.take()


async def test_one_that_leaves_while_it_waits_takes_no_turn() -> None:
    turns = Turns(at_once=1, patience_s=60)
    assert await turns.take()
    leaver = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait({leaver})
    turns.give()

    assert await turns.take()
