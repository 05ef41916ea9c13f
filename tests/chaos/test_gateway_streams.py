"""Two hundred streams at once through two apis and two routers: every byte right, nothing left behind."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.kit.stream_arena import APIS, Arena, Client, open_arena
from tests.kit.stream_clients import Verdict
from tests.kit.waiting import wait_until
from tests.kit.word_server import WordServer

ROUNDS = 3
"""The first warms up what grows once: pools, caches, the allocator's arenas."""
PLAIN, SLOW, LEAVING, FRAGILE = 130, 20, 34, 16
SLOTS = {"steady": 200, "mortal": 80, "wrong": 6, "fragile": 16}
MODELS: dict[str, dict[str, Any]] = {
    "mortal": {"upstream_name": "words"},  # to be replaced on the way, but not in what it says
    "fragile": {"agent_types": ["Fragile"]},
}
TOGETHER = 120
"""Answers that run at the same moment, at least, when a backend dies."""
GROWTH_MB = 20.0
"""Allowed over the rounds after the first: allocator noise. Their slow answers alone are 40 MB."""
GROWTH_FILES = 12
"""Connections to Redis that a pool opens when it is busier than before; leaked clients would be hundreds."""


@pytest.fixture
async def arena(tmp_path: Path, redis_url: str) -> AsyncIterator[Arena]:
    servers = {
        name: WordServer(name, tmp_path, slots=slots, status=500 if name == "wrong" else 200)
        for name, slots in SLOTS.items()
    }
    router = {"retry_base_s": 0.05, "idle_timeout_s": 20.0}
    async with open_arena(tmp_path, redis_url, servers, MODELS, router=router) as arena:
        yield arena


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_two_hundred_streams_lose_no_byte_no_slot_and_no_memory(arena: Arena) -> None:
    """Slow readers, leavers, a backend that is killed, one that breaks off, one that answers 500."""
    watched = [psutil.Process(process.pid) for process in arena.processes.values()]
    sizes: list[list[float]] = []
    files: list[list[int]] = []
    verdicts = []
    for number in range(ROUNDS):
        verdicts.append(await _round(arena, number))
        await arena.idle()
        sizes.append([process.memory_info().rss / 2**20 for process in watched])
        files.append([process.num_fds() for process in watched])

    await arena.journal()
    for found in verdicts:
        assert found[Verdict.REFUSED] == 0, "an answer that had not begun was not tried elsewhere"
        assert found[Verdict.COMPLETE] > PLAIN // 2
    # Later it is trusted less and has few answers, perhaps none that has begun.
    assert verdicts[0][Verdict.BROKEN] > 0, "no answer broke off when its backend died"
    grown = [late - early for early, late in zip(sizes[0], sizes[-1], strict=True)]
    assert max(grown) < GROWTH_MB, f"routers and apis grew by {grown} MB: {sizes}"
    opened = [late - early for early, late in zip(files[0], files[-1], strict=True)]
    assert max(opened) < GROWTH_FILES, f"routers and apis hold {opened} more files: {files}"


async def _round(arena: Arena, number: int) -> Counter[Verdict]:
    """All kinds of clients at once while a backend dies under some; what those that stayed got."""
    apis, chance = itertools.cycle(APIS), random.Random(number)
    plain = [arena.ask(next(apis), "auto:Chat", events=40, pause_s=0.1) for _ in range(PLAIN)]
    slow = [arena.ask(next(apis), "auto:Chat", pace_s=0.01, events=250, size=4000) for _ in range(SLOW)]
    fragile = [
        arena.ask(next(apis), "fragile", events=40, pause_s=0.1, break_after=None if one % 4 else 25)
        for one in range(FRAGILE)
    ]
    leaving = [
        asyncio.create_task(_leave(arena, next(apis), chance.random() < 0.5, chance.random()))
        for _ in range(LEAVING)
    ]
    await _kill_under_load(arena, plain, begun=1 if number == 0 else 0)
    # The one that took its place is asked again once its breaker lets somebody try.
    back = [] if number == ROUNDS - 1 else [arena.ask(APIS[0], "mortal")]
    for _, client in (*plain, *slow, *fragile, *back):
        await client
    await asyncio.gather(*leaving)

    assert all(heard.verdict() is Verdict.COMPLETE for heard, _ in back)
    for heard, _ in fragile:
        assert heard.verdict() is (Verdict.COMPLETE if heard.script.break_after is None else Verdict.BROKEN)
    return Counter(heard.verdict() for heard, _ in (*plain, *slow))


async def _kill_under_load(arena: Arena, clients: list[Client], *, begun: int) -> None:
    """Kill a backend while all work, and start another in its place once its clients know.

    ``begun``: how many of its answers must have begun.
    """

    async def busy() -> bool:
        models = [heard.headers.get("x-orchestrator-model") for heard, _ in clients if heard.answered]
        return models.count("mortal") >= begun and await arena.running() >= TOGETHER

    await wait_until(busy, f"{TOGETHER} answers run together", timeout_s=60)
    arena.servers["mortal"].kill()
    await wait_until(
        lambda: any(client.done() for _, client in clients), "a client hears of it", timeout_s=60
    )
    arena.servers["mortal"].restart()


async def _leave(arena: Arena, api: str, soon: bool, share: float) -> None:
    """A client that leaves at some moment, or after some of the bytes."""
    heard, client = arena.ask(api, "auto:Chat", events=40, pause_s=0.1)
    if soon:
        await asyncio.sleep(share)  # when it loses interest, not a wait for anything
    else:
        await wait_until(
            lambda: len(heard.body) > share * 3000 or client.done(), "it has heard enough", timeout_s=30
        )
    client.cancel()
    await asyncio.wait({client})
