"""Answers put together from the chunks of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backends.aggregate import Aggregate
from shared.backends.errors import Broken
from shared.backends.sse import SseEvent
from tests.unit.strategies import PROPERTY


def aggregate(*chunks: Any, chat: bool = True, limit: int = 1_000_000) -> Aggregate:
    result = Aggregate(chat=chat, limit=limit)
    for chunk in chunks:
        result.add(SseEvent(chunk if isinstance(chunk, str) else json.dumps(chunk)))
    return result


def delta(index: int = 0, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish_reason}]}


def choices(result: Aggregate) -> list[Any]:
    found: Any = result.response()["choices"]
    assert isinstance(found, list)
    return found


def test_role_only_null_and_empty_chunks_add_nothing() -> None:
    result = aggregate(
        {"id": "a", "model": "m", "created": 1, **delta(role="assistant", content=None)},
        {"choices": []},
        delta(content=""),
        delta(content="hi"),
        delta(content=" there"),
        delta(finish_reason="stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        "[DONE]",
    )

    assert (result.text, result.finish_reason, result.done, result.finished) == (
        "hi there",
        "stop",
        True,
        True,
    )
    assert result.response() == {
        "id": "a",
        "model": "m",
        "created": 1,
        "object": "chat.completion",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi there"}}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


def test_only_generated_tokens_count_as_the_first_token() -> None:
    result = Aggregate(chat=True, limit=100)

    def add(chunk: Any) -> bool:
        return result.add(SseEvent(json.dumps(chunk)))

    assert not add(delta(role="assistant", content=None))
    assert not add({"choices": []})
    assert add(delta(reasoning_content="hm"))
    assert add(delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]))
    assert not add(delta(finish_reason="stop"))


def test_tool_calls_are_joined_by_index() -> None:
    result = aggregate(
        delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "look"}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]),
        delta(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "go", "arguments": "{}"}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '"Graz"}'}}]),
        delta(finish_reason="tool_calls"),
    )  # fmt: skip

    (choice,) = choices(result)
    assert choice == {
        "index": 0,
        "finish_reason": "tool_calls",
        "message": {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"city":"Graz"}'},
                },
                {"id": "c2", "type": "function", "function": {"name": "go", "arguments": "{}"}},
            ],
        },
    }


def test_reasoning_is_kept_apart_from_the_answer() -> None:
    result = aggregate(delta(reasoning_content="let me"), delta(reasoning_content=" see"), delta(content="4"))

    (choice,) = choices(result)
    assert result.text == "4"
    assert choice["message"] == {"role": "assistant", "content": "4", "reasoning_content": "let me see"}


def test_log_probabilities_are_joined() -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": word}, "logprobs": {"content": [{"token": word}]}}]}
        for word in ("a", "b")
    ]

    (choice,) = choices(aggregate(*chunks))
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_several_choices_are_kept_apart_and_must_all_finish() -> None:
    chunks = [delta(1, content="b"), delta(0, content="a"), delta(0, finish_reason="stop")]

    half = aggregate(*chunks)
    whole = aggregate(*chunks, delta(1, finish_reason="length"))

    assert (half.finished, whole.finished) == (False, True)
    assert [choice["message"]["content"] for choice in choices(whole)] == ["a", "b"]


@PROPERTY
@given(st.lists(st.text(min_size=1)), st.integers(0, 60))
def test_text_is_cut_at_the_limit_and_nowhere_else(words: list[str], limit: int) -> None:
    chunks = [{"choices": [{"index": 0, "text": word}]} for word in words]
    whole = "".join(words).encode(errors="replace")

    result = aggregate(*chunks, chat=False, limit=limit)

    kept = result.text.encode()
    assert len(kept) <= limit
    assert result.truncated == (len(whole) > limit)
    assert result.finish_reason == ("length" if result.truncated else None)
    if not result.truncated:
        assert kept == whole


def test_log_probabilities_count_against_the_limit() -> None:
    fat = {"content": [{"token": "a", "top_logprobs": ["x" * 1000]}]}
    result = aggregate({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": fat}]}, limit=500)

    assert result.truncated
    assert len(json.dumps(result.response())) < 500


NAMES = "choices index delta text content tool_calls function name arguments logprobs finish_reason usage id"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=4)
    ),
    max_leaves=25,
)


@PROPERTY
@given(st.lists(json_values, max_size=5), st.booleans())
def test_chunks_of_any_shape_are_read_or_called_broken(chunks: list[Any], chat: bool) -> None:
    result = Aggregate(chat=chat, limit=10_000)
    for chunk in chunks:
        try:
            result.add(SseEvent(json.dumps(chunk)))
        except Broken:
            assert not isinstance(chunk, dict)

    assert json.dumps(result.response())
    assert isinstance(result.text, str)


@pytest.mark.parametrize("data", ["", "  ", "null"])
def test_empty_events_are_ignored(data: str) -> None:
    result = aggregate(data)

    assert (result.done, result.empty) == (False, True)


def test_an_event_nested_beyond_all_bounds_is_a_broken_answer() -> None:
    with pytest.raises(Broken, match="is not JSON"):
        aggregate('{"a":' * 100_000)
