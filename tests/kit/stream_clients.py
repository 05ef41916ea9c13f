"""Clients of the OpenAI-compatible streams that take down every byte, and a judge of what they got."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp

from tests.kit.word_server import DONE, Script

PATH = "/v1/chat/completions"
_SMALL_BYTES = 4096


class Verdict(StrEnum):
    COMPLETE = "complete"  # every byte that the backend meant to say
    BROKEN = "broken"  # a true beginning, then an error event, [DONE] and a clean end
    REFUSED = "refused"  # an error instead of an answer


@dataclass(slots=True)
class Heard:
    """What one client got; ``cut`` is how its connection broke off, None after a clean end."""

    script: Script
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    cut: str | None = None

    @property
    def job_id(self) -> str:
        return self.headers["x-orchestrator-job-id"]

    @property
    def answered(self) -> bool:
        """Whether any of the backend's words came."""
        return b"data: " in self.body

    @property
    def error(self) -> Any:
        """The error object that it ended with."""
        said = self.events[-2].removeprefix(b"data: ") if self.status == 200 else bytes(self.body)
        return json.loads(said)["error"]

    @property
    def events(self) -> list[bytes]:
        """The events without comments, each with the blank line that ends it."""
        found = bytes(self.body).split(b"\n\n")
        assert found.pop() == b"", f"ends inside an event: {bytes(self.body[-200:])!r}"
        return [event + b"\n\n" for event in found if not event.startswith(b":")]

    def verdict(self) -> Verdict:
        """What it comes to; fails for an answer that is wrong, or that stops without a word."""
        assert self.cut is None, f"{self.script}: cut off after {len(self.body)} bytes: {self.cut}"
        if self.status != 200:
            assert self.error["message"], (self.status, bytes(self.body))
            return Verdict.REFUSED
        events = self.events
        if not events or b'"error":{' in events[0][:20]:
            model, meant = "", []
        else:
            model = json.loads(events[0].removeprefix(b"data: "))["model"]
            meant = list(self.script.answer(model))
        assert self.headers.get("x-orchestrator-model", model) == model
        if events == meant:
            return Verdict.COMPLETE
        assert events[-1:] == [DONE], f"{self.script} stopped without a word: {events[-1:]!r}"
        assert self.error["message"], events[-2]
        told = events[:-2]
        assert told == meant[: len(told)], f"{self.script}: wrong bytes in {told!r}"
        return Verdict.BROKEN


async def listen(
    http: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    heard: Heard,
    *,
    pause_s: float = 0.0,
) -> Heard:
    """Ask the api at ``url`` and take down its answer; with ``pause_s`` in small bites and so far apart."""
    room = _SMALL_BYTES if pause_s else 2**16
    try:
        async with http.post(url + PATH, json=body, read_bufsize=room) as answer:
            heard.status = answer.status
            heard.headers = {name.lower(): value for name, value in answer.headers.items()}
            while bite := await answer.content.read(2 * _SMALL_BYTES):
                heard.body += bite
                if pause_s:
                    await asyncio.sleep(pause_s)  # the pace of the reader, not a wait for anything
    except (aiohttp.ClientError, ConnectionError) as error:
        heard.cut = repr(error)
    return heard


def client_session(*, small_window: bool = False) -> aiohttp.ClientSession:
    """Any number of clients, each on a connection of its own; a small window holds up the sender early."""

    def open_socket(address: Any) -> socket.socket:
        family, kind, protocol, _, _ = address
        opened = socket.socket(family, kind, protocol)
        if small_window:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BYTES)
        return opened

    connector = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=open_socket)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_read=60))
