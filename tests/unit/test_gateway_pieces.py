"""Pieces of an answer on their way: cut at events, renamed whatever the cuts, and read where they end."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.gateway.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect
from services.api.gateway.pieces import Ending, Events, Renamer, error_in, last_object
from shared.backends.errors import Broken, Interrupted, Saturated

UPSTREAM = "org/Модель-7b"
FRAGMENTS = (
    '"model":"org/Модель-7b"',
    '"model": "org/Модель-7b"',
    '"model":"org/\\u041c\\u043e\\u0434\\u0435\\u043b\\u044c-7b"',
    '\\"model\\":\\"org/Модель-7b\\"',
    '"model":"org/Модель-7b-chat"',
    '"model":"org/',
    '"',
    '"model',
    "data: {",
    "}\n\n",
    "й",
)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.lists(st.integers(0, 300), max_size=12))
def test_a_model_is_renamed_the_same_whatever_the_cuts(fragments: list[str], cuts: list[int]) -> None:
    text = "".join(fragments)
    data = text.encode()
    renamer = Renamer(UPSTREAM, 'public \\g<1> "name"')
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]

    out = b"".join(renamer.feed(data[a:b]) for a, b in itertools.pairwise(places))
    out += renamer.close()

    names = f"{re.escape(FRAGMENTS[0][8:])}|{re.escape(FRAGMENTS[2][8:])}"
    new = json.dumps('public \\g<1> "name"')
    expected = re.sub(rf'(?<!\\)("model": ?)(?:{names})', lambda found: found[1] + new, text)
    assert out.decode() == expected


@given(st.lists(st.sampled_from(["data: {}\n\n", ": ping\n\n", "data: a\r\n\r\n", "x"])), st.integers(1, 9))
def test_events_go_on_only_whole_and_nothing_is_lost(lines: list[str], size: int) -> None:
    data = "".join(lines).encode()
    events = Events()
    pieces = [events.feed(data[at : at + size]) for at in range(0, len(data), size)]

    assert all(piece.endswith((b"\n\n", b"\r\n\r\n")) for piece in pieces if piece)
    assert b"".join(pieces) + events.close() == data


def test_an_event_too_long_to_be_held_goes_on_in_pieces() -> None:
    events = Events()
    long = b"data: " + b"x" * 200_000

    sent = b"".join(events.feed(long[at : at + 1000]) for at in range(0, len(long), 1000))

    assert len(sent) > 130_000
    assert sent + events.close() == long


@pytest.mark.parametrize(
    ("dialect", "stream", "complete"),
    [
        (OPENAI, b'data: {"choices":[]}\n\ndata: [DONE]\n\n', True),
        (OPENAI, b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', True),
        (OPENAI, b'data: {"choices":[{"finish_reason":null}]}\n\n', False),
        (OPENAI, b'data: {"text":"data: [DONE] \\"finish_reason\\":\\"stop\\""}\n\n', False),
        (OPENAI, b"", False),
        (ANTHROPIC, b"event: message_stop\ndata: {}\n\n", True),
        (ANTHROPIC, b'event: message_delta\ndata: {"finish_reason":"stop"}\n\n', False),
        (RESPONSES, b"event: response.completed\ndata: " + b"x" * 100_000 + b"\n\n", True),
        (RESPONSES, b"event: response.incomplete\ndata: {}\n\n", True),
        (RESPONSES, b"event: response.output_text.done\ndata: {}\n\n", False),
    ],
)
def test_a_stream_is_complete_when_its_dialect_says_so(
    dialect: Dialect, stream: bytes, *, complete: bool
) -> None:
    ending = Ending(dialect)
    ending.see(stream)

    assert ending.told_error() is None
    if complete:
        ending.check()
    else:
        with pytest.raises(Interrupted):
            ending.check()


@pytest.mark.parametrize(
    ("said", "kind", "detail"),
    [
        (b'data: {"error":{"message":"it died","code":500}}\n\n', Broken, "it died"),
        (
            b'data: {"x":1}\n\ndata: {"error":{"message":"busy","code":503}}\n\ndata: [DONE]\n\n',
            Saturated,
            "busy",
        ),
        (b'error: {"code":500,"message":"old llama.cpp"}\n\n', Broken, "old llama.cpp"),
        (b'event: error\ndata: {"type":"error","error":{"message":"it died"}}\n\n', Broken, "it died"),
        (b"event: error\ndata: not json\n\n", Broken, "not json"),
        (b'data: {"error"', Broken, "error"),
    ],
)
def test_an_error_event_is_recognised(said: bytes, kind: type[Exception], detail: str) -> None:
    error = error_in(said)

    assert isinstance(error, kind)
    assert detail in str(error)


def test_what_a_model_writes_is_no_error() -> None:
    text = json.dumps({"content": '\ndata: {"error":{"message":"x"}}\nevent: error'})

    assert error_in(f"data: {text}\n\n".encode()) is None


@pytest.mark.parametrize("after", range(len("error:")))
def test_what_a_model_writes_is_no_error_wherever_the_end_is_cut(after: int) -> None:
    ending = Ending(OPENAI)
    ending.see(b'data: {"text":"' + b"error:" * 4000 + b"x" * after + b'"}\n\n')
    ending.see(b"data: [DONE]\n\n")

    assert ending.told_error() is None
    ending.check()


def test_what_a_model_writes_is_no_end() -> None:
    ending = Ending(ANTHROPIC)
    ending.see(b'event: content_block_delta\ndata: {"text":"an event: message_stop ends it"}\n\n')
    ending.see(b'event: content_block_delta\ndata: {"text":"')
    ending.see(b'event: message_stop"}\n\n')

    with pytest.raises(Interrupted):
        ending.check()


def test_what_a_model_writes_is_no_failure() -> None:
    ending = Ending(RESPONSES)
    ending.see(b'event: response.output_text.delta\ndata: {"delta":"event: response.failed"}\n\n')
    ending.see(b"event: response.completed\ndata: {}\n\n")

    assert ending.told_error() is None
    ending.check()


def test_a_failure_that_the_backend_tells_is_one() -> None:
    ending = Ending(RESPONSES)
    ending.see(b"event: response.created\ndata: {}\n\nevent: response.failed\ndata: {}\n\n")

    assert isinstance(ending.told_error(), Broken)


def test_objects_nested_beyond_all_bounds_are_no_crash() -> None:
    deep = b'{"a":' * 100_000

    assert isinstance(error_in(b"error: " + deep + b"\n\n"), Broken)
    assert last_object(b'"usage":' + deep, "usage") == {}


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (b'"usage":{"a":1}} "usage": {"a":{"b":2}} rest', {"a": {"b": 2}}),
        (b'"usage":{"a":1},"usage":null}', {"a": 1}),
        (b'"usage":{"a":', {}),
        (b"nothing", {}),
    ],
)
def test_the_last_object_of_a_name_is_found_in_an_ends_bytes(tail: bytes, found: object) -> None:
    assert last_object(tail, "usage") == found
