"""Reading streams: requests through the consumer group, everything else by plain XREAD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.config import HistorySettings
from shared.errors import StoreUnavailable
from shared.keys import ROUTER_GROUP, Keys
from shared.store.client import BLOCK_S, translating
from shared.store.lines import LineClient
from shared.store.records import StreamEntry
from shared.store.scripts import Scripts
from shared.store.wire import packed

INTAKE_BLOCK_S = 0.5
"""How long a router's read of requests waits: it has to know how old at most is what it reads."""


class Intake:
    """One router's reading end of the request stream.

    Call ``ensure`` first; after any ``StoreUnavailable`` read ``own_pending`` once before going on, since a
    lost reply leaves entries delivered but unseen (hazards H3, H15).
    """

    def __init__(self, reader: LineClient, keys: Keys, consumer: str) -> None:
        self._reader = reader
        self._line = reader.line()
        self._stream = keys.requests
        self._consumer = consumer
        self._scripts = Scripts(reader, keys, HistorySettings(), retention_s=86_400.0)
        self._cursor = "0-0"
        self.restarts = 0
        """How often the group had to be created anew: what is read then may have been read long ago."""

    async def ensure(self) -> None:
        """Create the group at the start of the stream, so that what came before is not missed (H6)."""
        async with translating(self._reader):
            try:
                await self._reader.xgroup_create(self._stream, ROUTER_GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def read(self, count: int) -> list[StreamEntry]:
        """New entries, waiting up to ``INTAKE_BLOCK_S`` seconds.

        Past redis-py, whose way back from a reply is a good part of a job's way to its backend.
        """
        words = ("GROUP", ROUTER_GROUP, self._consumer, "COUNT", count, "BLOCK", round(INTAKE_BLOCK_S * 1000))
        command = packed("XREADGROUP", *words, "STREAMS", self._stream, ">")
        async with translating(self._reader):
            try:
                reply: Any = await self._line.ask(command)
            except ResponseError as error:
                await self._recreate(error)
                return []
        batches = (reply or {}).values()
        return [StreamEntry(one, _fields(flat)) for batch in batches for one, flat in batch if flat]

    async def own_pending(self, count: int, after: str = "0") -> list[StreamEntry]:
        """Entries delivered to this consumer and not acked."""
        async with translating(self._reader):
            try:
                reply: Any = await self._reader.xreadgroup(
                    ROUTER_GROUP, self._consumer, {self._stream: after}, count=count
                )
            except ResponseError as error:
                await self._recreate(error)
                return []
        return [entry for _, entry in entries_of(reply)]

    async def reclaim(self, *, idle_ms: int, count: int) -> list[StreamEntry]:
        """Take over entries that another consumer left unacked for ``idle_ms``.

        Follows the cursor from call to call: XAUTOCLAIM scans 10 x COUNT entries and would otherwise never
        get past fresh ones (H7). Entries deleted meanwhile are dropped from the pending list by Redis.
        """
        async with translating(self._reader):
            try:
                reply = await self._reader.xautoclaim(
                    self._stream, ROUTER_GROUP, self._consumer, idle_ms, self._cursor, count=count
                )
            except ResponseError as error:
                await self._recreate(error)
                return []
        self._cursor = reply[0]
        return [StreamEntry(entry, fields) for entry, fields in reply[1]]

    async def forget_idle_consumers(self, *, idle_ms: int) -> list[str]:
        """Delete consumers that are long gone; never one with pending entries, which would be lost (H14)."""
        async with translating(self._reader):
            return list(await self._scripts.run("forget_consumers", ROUTER_GROUP, self._consumer, idle_ms))

    async def _recreate(self, error: ResponseError) -> None:
        # The stream or the group is gone (data lost, FLUSHALL): start over instead of going deaf (H16).
        if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
            raise error
        self.restarts += 1
        await self.ensure()


class Follower:
    """Plain XREAD over several streams from a moving position; every follower sees every entry."""

    def __init__(self, reader: Redis, positions: Mapping[str, str]) -> None:
        self._reader = reader
        self._positions = dict(positions)

    async def settle(self) -> None:
        """Replace ``$`` by the last id that exists, so that nothing between two reads is missed."""
        async with translating(self._reader):
            for stream, position in self._positions.items():
                if position == "$":
                    last: Any = await self._reader.xrevrange(stream, count=1)
                    self._positions[stream] = last[0][0] if last else "0-0"

    async def skip(self) -> None:
        """Go on from what is newest now, wherever it was before."""
        self._positions = dict.fromkeys(self._positions, "$")
        await self.settle()

    @property
    def positions(self) -> Mapping[str, str]:
        return self._positions

    async def read(self, count: int = 500) -> list[tuple[str, StreamEntry]]:
        """``(stream, entry)`` pairs, waiting up to ``BLOCK_S`` seconds."""
        async with translating(self._reader):
            try:
                positions: Any = dict(self._positions)
                reply: Any = await self._reader.xread(positions, count=count, block=round(BLOCK_S * 1000))
            except ResponseError as error:
                if not str(error).startswith("UNBLOCKED"):
                    raise
                raise StoreUnavailable(str(error)) from error
        found = entries_of(reply)
        for stream, entry in found:
            self._positions[stream] = entry.id
        return found


async def read_range(
    redis: Redis,
    stream: str,
    *,
    start: str = "-",
    end: str = "+",
    count: int = 500,
    newest_first: bool = False,
) -> list[StreamEntry]:
    """A page of a stream; ``start`` is the lower end also when the newest come first."""
    async with translating(redis):
        if newest_first:
            found: Any = await redis.xrevrange(stream, end, start, count=count)
        else:
            found = await redis.xrange(stream, start, end, count=count)
    return [StreamEntry(entry, fields) for entry, fields in found]


def entries_of(reply: Any) -> list[tuple[str, StreamEntry]]:
    """Parse the reply of XREAD and XREADGROUP under protocol 3 with ``legacy_responses=False`` (H20).

    An entry that was trimmed while pending comes back without fields and is left out.
    """
    pairs: Sequence[tuple[str, Any]] = list(reply.items()) if isinstance(reply, dict) else list(reply or ())
    found: list[tuple[str, StreamEntry]] = []
    for stream, batches in pairs:
        for item in batches:
            entries = [item] if _is_entry(item) else item
            found += [(stream, StreamEntry(entry[0], entry[1])) for entry in entries if entry[1]]
    return found


def _fields(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _is_entry(item: Any) -> bool:
    return len(item) == 2 and isinstance(item[0], str)
