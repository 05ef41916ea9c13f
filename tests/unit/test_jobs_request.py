"""What a job may look like, as a JSON body and as a stream entry, and what is said of a wrong one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.config import JobSettings
from shared.errors import InvalidRequest
from shared.jobs import JobRequest, parse_entry, parse_job
from shared.states import Mode

HALF = "\ud83d"


def _nested(depth: int, inside: str = "") -> str:
    return "[" * depth + inside + "]" * depth


@pytest.mark.parametrize(
    ("data", "field", "remedy"),
    [
        ({}, "", "exactly one of 'prompt' (text) and 'messages'"),
        ({"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}, "", "exactly one of"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": 5}, "prompt", "valid string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": ["hi"]}, "messages.0", "valid dictionary"),
        ({"messages": [{"content": "hi"}]}, "", "messages: every message needs a 'role'"),
        ({"messages": [{"role": 1}]}, "", "messages: every message needs a 'role'"),
        ({"prompt": "hi", "prio": 5}, "prio", "is not a field of a job; known: prompt, messages, model,"),
        ({"prompt": "hi", "priority": 10}, "priority", "less than or equal to 9"),
        ({"prompt": "hi", "priority": -1}, "priority", "greater than or equal to 0"),
        ({"prompt": "hi", "priority": "urgent"}, "priority", "valid integer"),
        ({"prompt": "hi", "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"prompt": "hi", "max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"prompt": "hi", "model": ""}, "model", "at least 1 character"),
        ({"prompt": "hi", "agent_type": "x" * 65}, "agent_type", "at most 64 characters"),
        ({"prompt": "hi", "mode": "fast"}, "mode", "'interactive' or 'batch'"),
        ({"prompt": "hi", "deadline_s": 0}, "deadline_s", "greater than 0"),
        ({"prompt": "hi", "deadline_s": 31 * 86_400}, "deadline_s", "less than or equal to 2592000"),
        ({"prompt": "hi", "max_attempts": 101}, "max_attempts", "less than or equal to 100"),
        ({"prompt": "hi", "temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"prompt": "hi", "top_p": 1.01}, "top_p", "less than or equal to 1"),
        ({"prompt": "hi", "metadata": [1]}, "metadata", "valid dictionary"),
        ({"prompt": "hi", "metadata": {1: 2}}, "metadata.1.[key]", "valid string"),
        ({"prompt": "hi", "params": {"n": 2}}, "", "params: n is set by the orchestrator: leave it out"),
        ({"prompt": "hi", "params": {"stream": True, "model": "x"}}, "", "params: model, stream is set"),
        ({"prompt": "hi", "caller": ""}, "caller", "at least 1 character"),
        ("hi", "", 'must be a JSON object such as {"prompt": "hi"}'),
        (None, "", "must be a JSON object"),
        ([{"prompt": "hi"}], "", "must be a JSON object"),
    ],
)
def test_a_wrong_job_is_refused_with_its_field_and_the_remedy(data: Any, field: str, remedy: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_job(data)
    assert caught.value.field == field
    assert remedy in caught.value.message
    assert str(caught.value) == (f"{field}: {caught.value.message}" if field else caught.value.message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", [{"role": "user", "content": HALF}]),
        ("messages", [{"role": "user", HALF: "x"}]),
        ("prompt", HALF),
        ("params", {"grammar": [{"root": HALF}]}),
        ("params", {"logit_bias": {HALF: 1}}),
        ("metadata", {"note": HALF}),
        ("stop", [HALF]),
        ("stop", HALF),
        ("model", HALF),
        ("caller", HALF),
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_hides(field: str, value: object) -> None:
    """JSON can say it, UTF-8 can't: no backend and no store would take it."""
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        parse_job({"prompt": "hi", field: value})
    assert caught.value.field == field
    str(caught.value).encode()


def test_a_field_named_by_half_a_surrogate_pair_is_refused_in_words_that_can_be_sent() -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        parse_job({"prompt": "hi", HALF: 1})
    str(caught.value).encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["temperature", "top_p", "deadline_s", "params", "metadata", "messages"])
def test_a_number_that_json_does_not_know_is_refused(field: str, value: float) -> None:
    """Python reads and writes NaN; the backends and the browsers behind us don't."""
    nested = {"params": {"x": [value]}, "metadata": {"x": value}, "messages": [{"role": "user", "x": value}]}
    with pytest.raises(InvalidRequest) as caught:
        parse_job({"prompt": "hi", field: nested.get(field, value)})
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["params", "metadata"])
def test_values_nested_beyond_all_reason_are_refused(field: str) -> None:
    """Python's own parser gives up at a thousand levels, the backend's may do so sooner."""
    assert parse_job({"prompt": "hi", field: {"x": json.loads(_nested(50))}})
    for depth in (100, 300, 900):
        with pytest.raises(InvalidRequest, match="nested") as caught:
            parse_job({"prompt": "hi", field: {"x": json.loads(_nested(depth))}})
        assert caught.value.field == field
        assert len(str(caught.value)) < 200


def test_a_chat_job_and_a_prompt_job_are_taken_as_they_are() -> None:
    chat = parse_job({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]})
    assert chat.messages == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert parse_job({"prompt": "\u00e4 \U0001f600"}).prompt == "\u00e4 \U0001f600"


@pytest.mark.parametrize(
    ("data", "target", "named", "fallback"),
    [
        ({}, "auto:*", None, True),
        ({"agent_type": "Chat"}, "auto:Chat", None, True),
        ({"model": "auto", "agent_type": "Chat"}, "auto:Chat", None, True),
        ({"model": "auto"}, "auto:*", None, True),
        ({"model": "alpha"}, "alpha", "alpha", False),
        ({"model": "alpha", "agent_type": "Chat"}, "alpha", "alpha", False),
        ({"model": "alpha", "fallback": True}, "alpha", "alpha", True),
        ({"fallback": False}, "auto:*", None, False),
    ],
)
def test_a_job_waits_for_the_model_it_names_or_for_any_of_its_agent_type(
    data: dict[str, Any], target: str, named: str | None, fallback: bool
) -> None:
    job = parse_job({"prompt": "hi", **data})
    assert (job.target, job.named_model, job.wants_fallback) == (target, named, fallback)


def test_the_backend_gets_prompt_sampling_and_params_and_nothing_of_ours() -> None:
    job = parse_job(
        {
            "prompt": "hi", "model": "alpha", "agent_type": "Chat", "priority": 9, "caller": "ann", "seed": 0,
            "temperature": 0, "stop": ["END"], "params": {"top_k": 3}, "metadata": {"a": 1}, "deadline_s": 5,
        }
    )  # fmt: skip
    body = job.backend_body(JobSettings(max_tokens=77))
    assert body == {
        "top_k": 3, "prompt": "hi", "max_tokens": 77, "temperature": 0.0, "stop": ["END"], "seed": 0,
    }  # fmt: skip


def test_the_backend_gets_the_messages_of_a_chat() -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = parse_job({"messages": messages, "max_tokens": 5}).backend_body(JobSettings())
    assert body == {"messages": messages, "max_tokens": 5}


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        ({"prompt": "x"}, 1),
        ({"prompt": "x" * 400}, 100),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, 108),
    ],
)
def test_prompt_tokens_are_guessed_at_four_characters_each(data: dict[str, Any], tokens: int) -> None:
    assert abs(parse_job(data).prompt_tokens_estimate - tokens) <= 2


def test_an_entry_says_what_a_body_says() -> None:
    fields = {
        "v": "1", "type": "job.request", "messages": '[{"role": "user", "content": "hi"}]',
        "agent_type": "Chat", "max_tokens": "16", "priority": "9", "mode": "batch",
        "prefer_llama_cpp": "true", "fallback": "0",
        "min_context_tokens": "2048", "deadline_s": "1.5", "max_attempts": "2", "caller": "ann", "seed": "-1",
        "temperature": "0.5", "top_p": "1", "params": '{"top_k": 3}', "metadata": '{"a": [1, null]}',
        "stop": '["a", "b"]', "unheard_of": "ignored",
    }  # fmt: skip
    assert parse_entry(fields) == JobRequest(
        messages=[{"role": "user", "content": "hi"}], agent_type="Chat", max_tokens=16, priority=9,
        mode=Mode.BATCH, prefer_llama_cpp=True, fallback=False, min_context_tokens=2048, deadline_s=1.5,
        max_attempts=2, caller="ann", seed=-1, temperature=0.5, top_p=1.0, params={"top_k": 3},
        metadata={"a": [1, None]}, stop=["a", "b"],
    )  # fmt: skip


@pytest.mark.parametrize(("text", "stop"), [("END", "END"), ('"END"', '"END"'), ('["a"]', ["a"])])
def test_stop_is_text_or_a_list(text: str, stop: str | list[str]) -> None:
    assert parse_entry({"prompt": "hi", "stop": text}).stop == stop


@pytest.mark.parametrize(
    ("fields", "field", "remedy"),
    [
        ({"prompt": "hi", "metadata": "{"}, "metadata", "is not JSON"),
        ({"prompt": "hi", "metadata": ""}, "metadata", "is not JSON"),
        ({"prompt": "hi", "params": "x=1"}, "params", "is not JSON"),
        ({"messages": "hi"}, "messages", "is not JSON"),
        ({"prompt": "hi", "stop": "[END"}, "stop", "is not JSON"),
        ({"prompt": "hi", "params": "9" * 5000}, "params", "is not JSON"),
        ({"prompt": "hi", "params": _nested(100_000)}, "params", "nested"),
        ({"prompt": "hi", "metadata": '{"a": ' + _nested(5000) + "}"}, "metadata", "nested"),
        ({"messages": '{"role": "user"}'}, "messages", "valid list"),
        ({"messages": "null"}, "", "exactly one of"),
        ({"prompt": "hi", "metadata": '{"a": NaN}'}, "metadata", "JSON"),
        ({"prompt": "hi", "metadata": '{"a": 1e999}'}, "metadata", "JSON"),
        ({"prompt": "hi", "temperature": "nan"}, "temperature", ""),
        ({"prompt": "hi", "deadline_s": "inf"}, "deadline_s", ""),
        ({"prompt": "hi", "max_tokens": "1e3"}, "max_tokens", "valid integer"),
        ({"prompt": "hi", "seed": "9" * 5000}, "seed", "integer"),
        ({"prompt": "hi", "prefer_llama_cpp": "maybe"}, "prefer_llama_cpp", "valid boolean"),
        ({"prompt": "hi", "priority": ""}, "priority", "valid integer"),
        ({"prompt": "hi", "params": '{"a": "\\ud800"}'}, "params", "surrogate"),
        ({"text": "hi"}, "", "exactly one of"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_field_and_the_remedy(
    fields: dict[str, str], field: str, remedy: str
) -> None:
    """Whatever else came out of here would end the router that read it, and then the next one (H11)."""
    with pytest.raises(InvalidRequest) as caught:
        parse_entry(fields)
    assert caught.value.field == field
    assert remedy in caught.value.message
    assert len(str(caught.value)) < 1000


_JSONISH = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "null", "NaN", "[]", "{}", "[[[", '"\\ud800"', "1e999", '{"a": {"b": ["\\udfff"]}}']
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ).map(json.dumps),
)
_FIELD = st.sampled_from([*JobRequest.model_fields, "v", "type", "other"])


@given(fields=st.dictionaries(_FIELD, _JSONISH, max_size=6))
@example(fields={"prompt": "hi"})
def test_any_entry_becomes_a_job_that_can_be_sent_or_an_error_that_can_be_told(
    fields: dict[str, str],
) -> None:
    try:
        job = parse_entry(fields)
    except InvalidRequest as error:
        said = str(error)
    else:
        json.dumps(job.backend_body(JobSettings()), ensure_ascii=False, allow_nan=False).encode()
        json.dumps(job.metadata, allow_nan=False)
        said = job.target
    assert said.encode()
