"""Calls that go out together: in order, each told its own reply, and nobody held up by another's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from redis.exceptions import ResponseError

from shared.errors import StoreUnavailable
from shared.store.together import Together
from shared.store.wire import Word
from tests.kit.waiting import wait_until


class Server:
    """Answers every word in capitals; each run waits for ``go`` and fails for the words in ``refused``."""

    def __init__(self) -> None:
        self.runs: list[list[Word]] = []
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.refused: dict[Word, Exception] = {}

    async def run(self, words: Sequence[Word]) -> list[str]:
        self.runs.append(list(words))
        self.began.set()
        await self.go.wait()
        for word in words:
            if word in self.refused:
                raise self.refused[word]
        return [str(word).upper() for word in words]


async def _started(server: Server, together: Together, *words: str) -> list[asyncio.Task[object]]:
    """These calls, one after the other, the first under way."""
    calls = [asyncio.create_task(together.call((word,))) for word in words]
    await server.began.wait()
    return calls


async def test_one_alone_goes_out_at_once() -> None:
    server = Server()
    server.go.set()
    together = Together(server.run)

    assert [await together.call((word,)) for word in ("a", "b")] == ["A", "B"]
    assert server.runs == [["a"], ["b"]]


async def test_what_comes_meanwhile_goes_out_as_one() -> None:
    server = Server()
    calls = await _started(server, Together(server.run), "a", "b", "c")
    server.go.set()

    assert await asyncio.gather(*calls) == ["A", "B", "C"]
    assert server.runs == [["a"], ["b", "c"]]


async def test_the_first_that_fails_fails_alone() -> None:
    server = Server()
    server.refused["a"] = StoreUnavailable("away")
    first, *others = await _started(server, Together(server.run), "a", "b")
    server.go.set()

    with pytest.raises(StoreUnavailable):
        await first
    assert await asyncio.gather(*others) == ["B"]


async def test_one_among_several_that_the_script_refuses_is_told_alone() -> None:
    server = Server()
    server.refused["b"] = ResponseError("WRONGTYPE")
    calls = await _started(server, Together(server.run), "a", "b", "c")
    server.go.set()

    told = await asyncio.gather(*calls, return_exceptions=True)
    assert told == ["A", server.refused["b"], "C"]
    assert server.runs[1:] == [["b", "c"], ["b"], ["c"]]


async def test_a_server_that_is_away_is_told_to_all() -> None:
    server = Server()
    server.refused["b"] = StoreUnavailable("away")
    calls = await _started(server, Together(server.run), "a", "b", "c")
    server.go.set()

    told = await asyncio.gather(*calls, return_exceptions=True)
    assert told == ["A", server.refused["b"], server.refused["b"]]
    assert len(server.runs) == 2


async def test_one_that_waits_no_more_takes_nobody_along() -> None:
    server = Server()
    calls = await _started(server, Together(server.run), "a", "b", "c")
    await asyncio.sleep(0)
    calls[1].cancel()
    calls[0].cancel()
    server.go.set()

    assert await calls[2] == "C"


async def test_a_large_one_goes_by_itself() -> None:
    server = Server()
    large = "x" * 40_000
    calls = await _started(server, Together(server.run), "a", large, "b")
    server.go.set()

    assert await asyncio.gather(*calls) == ["A", large.upper(), "B"]
    assert server.runs[0] == ["a"]
    assert all(len(run) == 1 for run in server.runs if large in run)


async def test_what_waits_goes_past_one_that_does_not_come_back() -> None:
    """Without anybody else coming along."""
    server = Server()
    first, *others = await _started(server, Together(server.run), "a", "b", "c")
    await wait_until(lambda: len(server.runs) > 1, "the others are sent")
    assert server.runs == [["a"], ["b", "c"]]
    first.cancel()
    server.go.set()

    assert await asyncio.gather(*others) == ["B", "C"]


async def test_nobody_waits_behind_a_large_one() -> None:
    server = Server()
    large = "x" * 40_000
    calls = await _started(server, Together(server.run), large, "b")
    await asyncio.sleep(0)

    assert server.runs == [[large], ["b"]]
    server.go.set()
    await asyncio.gather(*calls)
