"""A job's body read in one pass is what it is when it is read step by step."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.jobs import JobRequest, parse_job, parse_json

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("hi")
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from([*JobRequest.model_fields, "unknown"])
_NEAR = st.sampled_from(["quality", "5", "true", 5.0, 1e999, [{"role": "user"}], ["a"], {"a": 1}, {"n": 1}])


@given(data=st.dictionaries(_FIELDS, _JSON | _NEAR, max_size=4), prompted=st.booleans())
@example(data={"params": {"a": math.nan}}, prompted=True)
@example(data={"params": {"a": math.inf}}, prompted=True)
@example(data={"metadata": {"a": [[math.nan]]}}, prompted=True)
@example(data={"seed": 2**70, "priority": True, "max_tokens": 5.0}, prompted=True)
@example(data={"messages": [{"role": "user", "content": [{"a": -math.inf}]}]}, prompted=False)
def test_a_body_read_in_one_pass_is_what_it_is_in_two(data: dict[str, Any], prompted: bool) -> None:
    asked = {"prompt": "hi", **data} if prompted else data
    try:
        expected = parse_job(asked)
    except InvalidRequest:
        expected = None

    assert parse_json(json.dumps(asked).encode()) == expected


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"prompt": "hi"} x', None),
        (b'{"prompt": "\xff"}', None),
        (b'{"prompt": "\\ud83d"}', None),
        (b'{"prompt": "hi", "metadata": {"a": ' + b"[" * 64 + b"]" * 64 + b"}}", None),
        (b'{"prompt": "hi", "metadata": {"a": ' + b"[" * 63 + b"]" * 63 + b"}}", "hi"),
        (b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}", None),
        (b'{"prompt": "hi", "prompt": "ho"}', "ho"),
        (b'{"prompt": "\\ud83d\\ude00"}', "\U0001f600"),
    ],
)
def test_only_a_good_body_is_taken_in_one_pass(body: bytes, taken: str | None) -> None:
    job = parse_json(body)

    assert (None if job is None else job.prompt) == taken
