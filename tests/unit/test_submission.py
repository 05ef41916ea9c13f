"""From a request to a job that the store can accept: defaults, sizes, and names that nobody registered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shared.config import JobSettings, QueueSettings, Settings
from shared.errors import InvalidRequest
from shared.jobs import parse_job
from shared.registry import Registration
from shared.submission import check_known, new_job, new_job_id, request_digest

SETTINGS = Settings(
    jobs=JobSettings(max_tokens=100, priority=3, deadline_s=60, max_attempts=4, max_request_bytes=2048),
    queue=QueueSettings(priority_step_s=10),
)
ALPHA = Registration(name="alpha", port=1, agent_types=("Chat", "Code"))
BETA = Registration(name="beta", port=2, agent_types=("Chat",), serves=("small", "beta-2"))
ANY = Registration(name="any", port=3)


def _job(**fields: Any) -> Any:
    return new_job(parse_job({"prompt": "hi", **fields}), SETTINGS, "j1", "r1")


def test_what_a_request_leaves_open_the_settings_decide() -> None:
    job = _job()
    assert (job.id, job.target, job.caller) == ("j1", "auto:*", None)
    assert (job.boost_ms, job.deadline_in_ms) == (30_000, 60_000)
    assert json.loads(job.body) == {"prompt": "hi", "max_tokens": 100}
    assert job.fields == {
        "model": "", "agent_type": "", "mode": "", "priority": "3", "prompt_tokens": "1",
        "max_tokens": "100", "min_context_tokens": "0", "prefer_llama_cpp": "0", "fallback": "1",
        "max_attempts": "4", "caller": "", "metadata": "", "request_id": "r1",
    }  # fmt: skip


def test_what_a_request_says_wins_over_the_settings() -> None:
    job = _job(
        model="alpha", agent_type="Chat", mode="batch", priority=0, max_tokens=7, min_context_tokens=9,
        prefer_llama_cpp=True, fallback=True, max_attempts=1, caller="ann", metadata={"a": "\u00e4"},
        deadline_s=0.5,
    )  # fmt: skip
    assert (job.target, job.caller, job.boost_ms, job.deadline_in_ms) == ("alpha", "ann", 0, 500)
    assert job.fields == {
        "model": "alpha", "agent_type": "Chat", "mode": "batch", "priority": "0", "prompt_tokens": "1",
        "max_tokens": "7", "min_context_tokens": "9", "prefer_llama_cpp": "1", "fallback": "1",
        "max_attempts": "1", "caller": "ann", "metadata": '{"a": "\\u00e4"}', "request_id": "r1",
    }  # fmt: skip
    assert all(isinstance(value, str) for value in job.fields.values())


def test_text_stays_text_in_the_body() -> None:
    """As UTF-8, not as escapes: a prompt of Chinese would be twice as large."""
    assert "\u4f60".encode() in _job(prompt="\u4f60\u597d").body


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "x" * 2048}, "prompt"),
        ({"prompt": "\u4f60" * 700}, "prompt"),
        ({"metadata": {"a": "x" * 2048}}, "prompt"),
        ({"params": {"a": "x" * 2048}}, "prompt"),
    ],
)
def test_a_request_that_is_too_large_is_refused_with_both_sizes(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=r"\d+ bytes, more than jobs.max_request_bytes = 2048") as caught:
        _job(**fields)
    assert caught.value.field == field


def test_a_chat_that_is_too_large_is_refused_by_its_messages() -> None:
    request = parse_job({"messages": [{"role": "user", "content": "x" * 2048}]})
    with pytest.raises(InvalidRequest) as caught:
        new_job(request, SETTINGS, "j1")
    assert caught.value.field == "messages"


def test_a_request_just_within_the_limit_is_taken() -> None:
    overhead = len(_job(prompt="x").body) - 1
    assert len(_job(prompt="x" * (2048 - overhead)).body) == 2048
    with pytest.raises(InvalidRequest):
        _job(prompt="x" * (2048 - overhead + 1))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "auto"},
        {"model": "alpha"},
        {"model": "small"},
        {"agent_type": "Chat"},
        {"agent_type": "Code"},
        {"model": "beta-2", "agent_type": "Code"},
    ],
)
def test_registered_names_are_known(fields: dict[str, Any]) -> None:
    check_known(parse_job({"prompt": "hi", **fields}), (ALPHA, BETA))


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"model": "gamma"}, "model", "'gamma' is not registered; known: alpha, beta-2, small"),
        ({"model": "beta"}, "model", "'beta' is not registered; known: alpha, beta-2, small"),
        ({"agent_type": "Legal"}, "agent_type", "'Legal' is served by no model; known: Chat, Code"),
        ({"agent_type": "chat"}, "agent_type", "'chat' is served by no model; known: Chat, Code"),
    ],
)
def test_an_unknown_name_is_refused_with_the_list(fields: dict[str, Any], field: str, message: str) -> None:
    """A model that ``serves`` other names does not answer to its own."""
    with pytest.raises(InvalidRequest) as caught:
        check_known(parse_job({"prompt": "hi", **fields}), (ALPHA, BETA))
    assert (caught.value.field, caught.value.message) == (field, message)


def test_a_model_for_any_agent_makes_every_agent_type_known() -> None:
    check_known(parse_job({"prompt": "hi", "agent_type": "Legal"}), (ALPHA, ANY))


@pytest.mark.parametrize("fields", [{"model": "alpha"}, {"agent_type": "Chat"}])
def test_where_nothing_is_registered_that_is_what_is_said(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="known: none yet"):
        check_known(parse_job({"prompt": "hi", **fields}), ())


def test_registrations_may_come_one_by_one() -> None:
    def registrations() -> Iterator[Registration]:
        yield ALPHA
        yield BETA

    check_known(parse_job({"prompt": "hi", "agent_type": "Code"}), registrations())


def test_ids_are_all_different_and_of_one_form() -> None:
    ids = {new_job_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == 32 and ":" not in one for one in ids)


def test_a_digest_tells_bodies_apart() -> None:
    assert request_digest(b"a") == request_digest(b"a")
    assert request_digest(b"a") != request_digest(b"b")
    assert " " not in request_digest(b"a")
