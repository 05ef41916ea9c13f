"""Requests that are read: how long they may take to come, and how much memory they may hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from starlette.types import Message, Receive, Scope

from services.api.gateway.asks import WITHIN_S, read_ask
from services.api.gateway.dialects import ENDPOINTS
from services.api.gateway.refusals import Refusal
from services.api.gateway.room import Room

SCOPE: Scope = {"type": "http", "headers": [], "state": {}}
LIMIT = 64 * 2**20
BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'


def _client(*pieces: bytes, ends: bool = True) -> Receive:
    """One that sends these pieces, then nothing more, ended or not."""
    left: Iterator[bytes] = iter(pieces)
    last = pieces[-1]

    async def receive() -> Message:
        piece = next(left, None)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": not (ends and piece is last)}

    return receive


async def test_a_body_that_comes_too_slowly_is_refused_and_held_no_more() -> None:
    room = Room()
    with room.share() as share:
        with pytest.raises(Refusal) as refused:
            await read_ask(SCOPE, _client(BODY, ends=False), ENDPOINTS[0], LIMIT, share, within_s=0.05)
        assert room.held_bytes == len(BODY)

    assert (refused.value.status, refused.value.code) == (408, "request_timeout")
    assert (b"connection", b"close") in refused.value.headers
    assert (room.held_bytes, WITHIN_S) == (0, 60)


async def test_a_request_holds_its_text_and_what_its_values_take_once_parsed() -> None:
    room = Room()
    with room.share() as share:
        ask = await read_ask(SCOPE, _client(BODY[:9], BODY[9:]), ENDPOINTS[0], LIMIT, share)
        # Two objects, a list and two commas.
        assert room.held_bytes == share.held_bytes == len(BODY) + 5 * 80

    assert (ask.raw, room.held_bytes) == (BODY, 0)


@pytest.mark.parametrize(
    ("count", "others", "status", "code"),
    [(4_000_000, 0, 413, "body_too_large"), (1_000_000, 400 * 2**20, 503, "api_full")],
)
async def test_many_small_values_are_refused_before_they_are_parsed(
    count: int, others: int, status: int, code: str
) -> None:
    small = b'{"model":"auto","z":[' + b"{}," * count
    room = Room()
    with room.share() as other, room.share() as share:
        other.take(others)
        with pytest.raises(Refusal) as refused:
            await read_ask(SCOPE, _client(small), ENDPOINTS[0], LIMIT, share)

    assert (refused.value.status, refused.value.code) == (status, code)


async def test_requests_that_are_still_being_read_count_too() -> None:
    room = Room()
    with room.share() as other, room.share() as share:
        other.take(512 * 2**20 - len(BODY))
        with pytest.raises(Refusal, match="512 MB of requests wait"):
            await read_ask(SCOPE, _client(BODY, b" "), ENDPOINTS[0], LIMIT, share)
