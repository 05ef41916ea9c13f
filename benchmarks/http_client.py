"""What a call to a backend costs: `python -m benchmarks.http_client [--quick]`, ours beside aiohttp."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import uvloop

from benchmarks.gateway_parts.load import build
from benchmarks.gateway_parts.processes import free_ports
from shared.backends.connection import KEPT_S
from shared.backends.http import HttpClient
from shared.backends.session import open_session

CALLS = 480
REPEATS, QUICK_REPEATS = 11, 1
_CONNECT_S, _IDLE_S = 3.0, 60.0
_HEADERS = {"Authorization": "Bearer none", "X-Request-ID": "r-0123456789"}
Call = Callable[[], Awaitable[None]]


def main() -> None:
    """Print a row for every kind of call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repeat, to see that it runs")
    repeats = QUICK_REPEATS if parser.parse_args().quick else REPEATS
    with tempfile.TemporaryDirectory() as directory, _stub(Path(directory)) as url:
        rows = uvloop.run(measure(url, repeats))
    said = f"{CALLS} calls, the least of {repeats} times; us of CPU a call"
    print(f"Python {platform.python_version()}, uvloop; {said}\n")
    print("| connection | in flight | answer | aiohttp | ours | share |\n|---|---|---|---|---|---|")
    for (connection, in_flight, answer), (theirs, ours) in rows.items():
        print(f"| {connection} | {in_flight} | {answer} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")


async def measure(url: str, repeats: int) -> dict[tuple[str, int, str], tuple[float, float]]:
    """CPU of this process in us a call, aiohttp's and ours taken in turn, by the kind of call.

    The least of several, because neighbours on the machine only ever add to it.
    """
    client = HttpClient()
    rows: dict[tuple[str, int, str], tuple[float, float]] = {}
    try:
        async with open_session() as fresh, open_session(reuse_s=KEPT_S) as kept:
            for keep in (False, True):
                for in_flight in (1, 16):
                    for stream in (False, True):
                        body = _body(stream)
                        pair = _theirs(kept if keep else fresh, url, body), _ours(client, url, body, keep)
                        costs = [[await _cost(call, in_flight) for call in pair] for _ in range(repeats)]
                        kind = ("kept" if keep else "new", in_flight, "6 events" if stream else "JSON")
                        theirs, ours = map(min, zip(*costs, strict=True))
                        rows[kind] = (theirs, ours)
    finally:
        await client.aclose()
    return rows


async def _cost(call: Call, in_flight: int) -> float:
    async def some(count: int) -> None:
        for _ in range(count):
            await call()

    await asyncio.gather(*(some(10) for _ in range(in_flight)))
    began = time.process_time()
    await asyncio.gather(*(some(CALLS // in_flight) for _ in range(in_flight)))
    return (time.process_time() - began) / CALLS * 1e6


def _ours(client: HttpClient, url: str, body: bytes, keep: bool) -> Call:
    async def call() -> None:
        response = await client.post(
            url, body, _HEADERS, connect_timeout_s=_CONNECT_S, idle_timeout_s=_IDLE_S, keep=keep
        )
        try:
            while await response.readany():
                pass
        finally:
            response.close()

    return call


def _theirs(session: aiohttp.ClientSession, url: str, body: bytes) -> Call:
    timeout = aiohttp.ClientTimeout(connect=_CONNECT_S, sock_connect=_CONNECT_S, sock_read=_IDLE_S)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **_HEADERS}

    async def call() -> None:
        response = await session.post(url, data=body, headers=headers, timeout=timeout, allow_redirects=False)
        try:
            while await response.content.readany():
                pass
        finally:
            response.close()

    return call


def _body(stream: bool) -> bytes:
    asked = [{"role": "user", "content": "pace_us=0 chunks=4"}]
    said = {"model": "stub", "messages": asked, "max_tokens": 4, "stream": stream}
    return json.dumps(said, separators=(",", ":")).encode()


@contextmanager
def _stub(directory: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    with subprocess.Popen([build(directory, "stub"), str(port)], stdout=subprocess.PIPE) as stub:
        assert stub.stdout is not None
        stub.stdout.readline()  # that it is ready
        try:
            yield f"http://127.0.0.1:{port}/v1/chat/completions"
        finally:
            stub.kill()


if __name__ == "__main__":
    main()
