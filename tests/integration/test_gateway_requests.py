"""What the OpenAI-compatible calls take, what they refuse and in whose words, and the list of models."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from shared.states import JobState
from shared.store.records import JobRecord
from tests.kit.api_fixture import BOUND, MAX_BODY_BYTES, ApiClient
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

CHAT_PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "auto", "messages": MESSAGES}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"model": "m" * 129}, "model"),
        ({"model": "auto:"}, "model"),
        ({"model": "auto:not/one"}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_a_wrong_field_is_named_in_openais_error_object(
    api: ApiClient, changes: dict[str, Any], param: str
) -> None:
    answer = await api.call("POST", CHAT_PATH, json={**CHAT, **changes})

    error = answer.body["error"]
    assert (answer.status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert error["message"].startswith(f"{param}: ")
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Priority", "10"),
        ("X-Priority", "-1"),
        ("X-Priority", "high"),
        ("X-Priority", "٣"),
        ("X-Priority", ""),
        ("X-Mode", "fast"),
        ("X-Deadline-S", "0"),
        ("X-Deadline-S", "nan"),
        ("X-Deadline-S", "inf"),
        ("X-Deadline-S", "soon"),
        ("X-Deadline-S", "99999999"),
        ("X-Agent-Type", "a/b"),
        ("X-Agent-Type", "a" * 65),
    ],
)
async def test_a_wrong_header_is_named_with_the_remedy(api: ApiClient, name: str, value: str) -> None:
    answer = await api.call("POST", CHAT_PATH, json=CHAT, headers={name: value})

    assert (answer.status, answer.body["error"]["param"]) == (400, name)
    assert "give" in answer.body["error"]["message"] or "must be" in answer.body["error"]["message"]


async def test_two_agent_types_that_differ_are_refused(api: ApiClient) -> None:
    headers = {"X-Agent-Type": "MedicalQA"}
    answer = await api.call("POST", CHAT_PATH, json={**CHAT, "model": "auto:Chat"}, headers=headers)

    assert (answer.status, answer.body["error"]["param"]) == (400, "X-Agent-Type")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"a":NaN}',
        b'{"a":"\\ud800"}',
        b"\xff",
        b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(api: ApiClient, body: bytes) -> None:
    answer = await api.call("POST", CHAT_PATH, data=body)

    assert (answer.status, answer.body["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_refused(api: ApiClient, *, declared: bool) -> None:
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * MAX_BODY_BYTES}]}).encode()

    async def pieces() -> Any:
        for at in range(0, len(body), 2**20):
            yield body[at : at + 2**20]

    answer = await api.call("POST", CHAT_PATH, data=io.BytesIO(body) if declared else pieces())

    assert (answer.status, answer.body["error"]["code"]) == (413, "body_too_large")
    assert "api.max_body_bytes" in answer.body["error"]["message"]


async def test_headers_over_the_limit_are_refused(api: ApiClient) -> None:
    headers = {f"X-Filler-{number}": "x" * 6000 for number in range(12)}
    answer = await api.call("POST", CHAT_PATH, json=CHAT, headers=headers)

    assert (answer.status, answer.body["error"]["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nope", "the model 'nope' is not registered; known: alpha, beta, and 'auto' for any"),
        ("auto:Nope", "the agent type 'Nope' is served by no model; known: Chat, MedicalQA"),
    ],
)
async def test_what_is_not_registered_is_a_404_that_lists_what_is(
    api: ApiClient, model: str, said: str
) -> None:
    answer = await api.call("POST", CHAT_PATH, json={**CHAT, "model": model})

    error = {"message": said, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    assert (answer.status, answer.body) == (404, {"error": error})


async def test_messages_are_refused_in_anthropics_words(api: ApiClient) -> None:
    unknown = await api.call("POST", "/v1/messages", json={"model": "nope", "messages": MESSAGES})
    wrong = await api.call("POST", "/v1/messages", json={"model": "auto"})

    assert (unknown.status, wrong.status) == (404, 400)
    assert unknown.body["error"].keys() == {"type", "message"}
    assert (unknown.body["type"], unknown.body["error"]["type"]) == ("error", "not_found_error")
    assert wrong.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "needs"),
    [("/v1/completions", "prompt"), ("/v1/embeddings", "input"), ("/v1/responses", "input")],
)
async def test_every_call_names_the_field_without_which_it_makes_no_sense(
    api: ApiClient, path: str, needs: str
) -> None:
    answer = await api.call("POST", path, json={"model": "auto"})

    assert (answer.status, answer.body["error"]["param"]) == (400, needs)


async def test_a_text_completion_with_messages_is_refused_rather_than_sent_elsewhere(api: ApiClient) -> None:
    answer = await api.call("POST", "/v1/completions", json={**CHAT, "prompt": "hi"})

    assert (answer.status, answer.body["error"]["param"]) == (400, "messages")


async def test_the_models_are_every_public_name_and_auto(api: ApiClient, api_store: Store) -> None:
    assert await api_store.jobs.counts() == (0, 0)

    answer = await api.get("/v1/models")
    one = await api.get("/v1/models/auto:MedicalQA")
    nobody = await api.get("/v1/models/some/path")
    slash = await api.get("/v1/models/")

    assert answer.body["object"] == "list"
    owners = {entry["id"]: entry["owned_by"] for entry in answer.body["data"]}
    assert owners == {
        "alpha": "llama_cpp",
        "beta": "llama_cpp",
        "auto": "gpu-orchestrator",
        "auto:Chat": "gpu-orchestrator",
        "auto:MedicalQA": "gpu-orchestrator",
    }
    assert all((entry["object"], entry["created"]) == ("model", 0) for entry in answer.body["data"])
    assert one.body in answer.body["data"]
    assert slash.body == answer.body
    assert (nobody.status, nobody.body["error"]["code"]) == (404, "model_not_found")


async def _waits(api: ApiClient, store: Store, body: dict[str, Any], **headers: str) -> JobRecord:
    """The job that a request becomes while it waits; its client then leaves."""
    asked = asyncio.create_task(api.call("POST", CHAT_PATH, json=body, headers=headers))

    async def waiting() -> JobRecord | None:
        found = await store.jobs.list_newest(state=JobState.QUEUED, limit=1)
        return found[0] if found else None

    job = await wait_until(waiting, "the job waits")
    asked.cancel()

    async def cancelled() -> bool:
        return await store.state(job.job_id) == "cancelled"

    await wait_until(cancelled, "the job goes with its client")
    return job


async def test_headers_and_fields_become_those_of_the_job(api: ApiClient, api_store: Store) -> None:
    headers = {"X-Agent-Type": "MedicalQA", "X-Priority": "9", "X-Mode": "batch", "X-Deadline-S": "12.5"}
    body = {
        **CHAT,
        "max_completion_tokens": 77,
        "user": "ward 3",
        "messages": [{"role": "user", "content": "x" * 4000}],
    }

    fields = (await _waits(api, api_store, body, **headers)).fields

    expected = {
        "target": "auto:MedicalQA",
        "model": "",
        "agent_type": "MedicalQA",
        "priority": "9",
        "mode": "batch",
        "caller": "ward 3",
        "max_tokens": "77",
        "fallback": "1",
    }
    assert {name: fields[name] for name in expected} == expected
    assert int(fields["deadline_ms"]) - int(fields["submitted_ms"]) == 12_500
    assert 1000 <= int(fields["prompt_tokens"]) <= 1020


async def test_without_headers_the_defaults_hold_and_no_body_enters_redis(
    api: ApiClient, api_store: Store
) -> None:
    job = await _waits(api, api_store, {**CHAT, "model": "beta", "user": "u" * 129, "max_tokens": -1})

    fields = job.fields
    assert (fields["target"], fields["model"], fields["fallback"]) == ("beta", "beta", "0")
    assert (fields["priority"], fields["max_tokens"], fields["caller"]) == ("5", "512", "")
    assert fields["attached_to"].startswith("api-host.")
    assert await api_store.redis.exists(api_store.keys.of("request", job.job_id)) == 0


async def test_a_full_queue_says_when_to_come_again(api: ApiClient, api_store: Store) -> None:
    for number in range(BOUND):
        assert await api_store.submit(f"j{number}") == "ACCEPTED"

    answer = await api.call("POST", CHAT_PATH, json=CHAT)

    assert (answer.status, answer.body["error"]["code"]) == (429, "queue_full")
    assert answer.body["error"]["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) == 30
