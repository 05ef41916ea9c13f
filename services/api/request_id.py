"""Gives every request an id: taken from its client or new, in the answer, in every line of the log."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import log
from shared.request_ids import HEADER, new_request_id, taken

_SLOT = "orchestrator.request_id"
_NAME = HEADER.lower().encode()
_UNEXPECTED = 500
_PATH_CHARACTERS = 256
"""Of a path that stand in the log: a client may send 64 KB of it."""


def request_id_of(scope: MutableMapping[str, Any]) -> str:
    """The id of this request."""
    found: str = scope.get(_SLOT) or new_request_id()
    scope[_SLOT] = found
    return found


async def answer_with_id(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let the app answer; at its end one canonical line says how, for DEBUG or if the app failed."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == _NAME), None)
    request_id = scope[_SLOT] = taken(given)
    answer = _Answer(send, request_id)
    before = log.REQUEST.set(request_id)
    try:
        await app(scope, receive, answer.send)
    finally:
        answer.say(scope)
        log.REQUEST.reset(before)


class _Answer:
    __slots__ = ("_request_id", "_send", "_started", "_status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._started = time.monotonic()
        self._status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            header = (_NAME, self._request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await self._send(message)

    def say(self, scope: Scope) -> None:
        """Status 0: the client left before there was any answer."""
        level: log.Level = "ERROR" if self._status == _UNEXPECTED else "DEBUG"
        if not log.shows(level):
            return
        log.event(
            "request",
            level,
            request=self._request_id,
            method=scope["method"],
            path=scope["path"][:_PATH_CHARACTERS],
            status=self._status,
            total_ms=(time.monotonic() - self._started) * 1000,
        )
