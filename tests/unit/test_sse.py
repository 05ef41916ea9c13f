"""The parser of server-sent events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backends.sse import SseEvent, SseParser
from tests.unit.strategies import PROPERTY

STREAM = (
    "\ufeff: welcome\n"
    'data: {"text":"caf\u00e9 \u2713 \U0001f600"}\n\n'
    ": ping\r\n\r\n"
    "event: note\r\ndata: first line\r\ndata:second line\r\n\r\n"
    "id: 7\rdata: old line ends\r\r"
    "retry: 10\n\n"
    "data\n\n"
    'error: {"code":500}\n\n'
    "data: [DONE]\n\n"
).encode()
EVENTS = [
    SseEvent('{"text":"caf\u00e9 \u2713 \U0001f600"}'),
    SseEvent("first line\nsecond line", "note"),
    SseEvent("old line ends"),
    SseEvent(""),
    SseEvent('{"code":500}', "error"),
    SseEvent("[DONE]"),
]


def parse(*chunks: bytes) -> list[SseEvent]:
    parser = SseParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.close()


def test_a_whole_stream_is_read() -> None:
    assert parse(STREAM) == EVENTS


def test_every_single_cut_gives_the_same_events() -> None:
    for cut in range(len(STREAM) + 1):
        assert parse(STREAM[:cut], STREAM[cut:]) == EVENTS


@PROPERTY
@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_any_split_of_the_bytes_gives_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]

    assert parse(*(STREAM[begin:end] for begin, end in pairwise(edges))) == EVENTS


@PROPERTY
@given(st.lists(st.binary(max_size=30), max_size=20))
def test_any_bytes_give_the_same_events_whole_or_in_pieces(chunks: list[bytes]) -> None:
    assert parse(*chunks) == parse(b"".join(chunks))


@PROPERTY
@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=6))
def test_what_is_written_as_data_lines_is_read_back(lines: list[str]) -> None:
    written = "".join(f"data: {line}\n" for line in lines) + "\n"

    assert parse(written.encode()) == ([SseEvent("\n".join(lines))] if lines else [])


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b", [SseEvent("a"), SseEvent("b")]),
        (b"data: a\n", [SseEvent("a")]),
        (b"event: x\n\ndata: a\n\n", [SseEvent("a")]),
        (b"data:  two blanks\n\n", [SseEvent(" two blanks")]),
        (b"data: \xff\xfe\n\n", [SseEvent("\ufffd\ufffd")]),
        (b"\n\n\n", []),
        (b": only a comment", []),
    ],
)
def test_corners_of_the_format(stream: bytes, events: list[SseEvent]) -> None:
    assert parse(stream) == events


def test_an_event_is_given_out_as_soon_as_its_blank_line_is_there() -> None:
    parser = SseParser()

    assert parser.feed(b"data: a\r\n\r") == [SseEvent("a")]
    assert parser.feed(b"\ndata: b\n\n") == [SseEvent("b")]


def test_pending_bytes_tell_how_much_is_held_back() -> None:
    parser = SseParser()
    parser.feed(b"data: 12345\ndata: 678")

    assert parser.pending_bytes == len("12345\n") + len("data: 678")
    parser.feed(b"\n\n")
    assert parser.pending_bytes == 0
