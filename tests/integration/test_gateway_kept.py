"""Idle connections to vLLM, used again while they last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from tests.kit.gateway import CHAT, Desk, desk
from tests.kit.store_fixture import Store

_ANSWER = json.dumps(
    {"object": "chat.completion", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
).encode()


class _Server:
    """Answers a connection's first ``good`` requests and closes it upon the next; ``seen`` has them all."""

    def __init__(self, good: int) -> None:
        self._good = good
        self.seen: list[tuple[int, int]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = len({number for number, _ in self.seen})
        with closing(writer), suppress(asyncio.IncompleteReadError):  # its client leaves some day
            for nth in range(self._good + 1):
                await self._read(reader)
                self.seen.append((connection, nth))
                if nth == self._good:
                    break
                kept = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                writer.write(kept % len(_ANSWER) + _ANSWER)
                await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))


@asynccontextmanager
async def _server(good: int) -> AsyncIterator[_Server]:
    server = _Server(good)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


async def _ask(api: Desk, server: _Server) -> tuple[int, str]:
    asked = api.asks(CHAT)
    job_id = await api.grant(server.url, backend="vllm")
    return (await asked).status, job_id


async def test_a_connection_carries_one_request_after_the_other(store: Store, tmp_path: Path) -> None:
    async with _server(good=2) as server, desk(store, tmp_path) as api:
        answers = [await _ask(api, server) for _ in range(2)]

    assert [status for status, _ in answers] == [200, 200]
    assert server.seen == [(0, 0), (0, 1)]


async def test_one_that_the_server_was_closing_costs_no_try(store: Store, tmp_path: Path) -> None:
    async with _server(good=1) as server, desk(store, tmp_path) as api:
        answers = [await _ask(api, server) for _ in range(2)]
        job = await api.ended(answers[1][1])

    assert [status for status, _ in answers] == [200, 200]
    assert server.seen == [(0, 0), (0, 1), (1, 0)]
    assert (job["state"], job["attempt"], job["tries"]) == ("succeeded", "1", "0")
