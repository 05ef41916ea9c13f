"""Other dialects and other clients than OpenAI's, against real llama.cpp through the whole stack."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.kit.openai_client import FRESH, MESSAGES, facts, openai_client
from tests.kit.openai_stack import OpenAiStack

pytestmark = [pytest.mark.llamacpp, pytest.mark.asyncio(loop_scope="module")]


async def test_responses_are_llama_cpps_streamed_or_not(openai_stack: OpenAiStack) -> None:
    body: dict[str, Any] = {
        "input": "the gpu queue",
        "max_output_tokens": 8,
        "temperature": 0,
        "extra_body": FRESH,
    }
    direct, ours = openai_stack.direct["bi-medix2"].responses, openai_stack.client.responses

    expected, got = (
        await direct.create(model="bi-medix2", **body),
        await ours.create(model="bi-medix2", **body),
    )
    stream = await ours.create(model="bi-medix2", **body, stream=True)
    events = [event async for event in stream]

    assert got.output_text == expected.output_text
    assert facts(got) == {**facts(expected), "model": "bi-medix2"}
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[-1].type == "response.completed"
    assert events[-1].response.model == "bi-medix2"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == got.output_text


async def test_messages_in_anthropics_dialect_are_llama_cpps_streamed_or_not(
    openai_stack: OpenAiStack,
) -> None:
    http, body = (
        openai_stack.stack.http,
        {"messages": MESSAGES[1:], "max_tokens": 8, "temperature": 0, **FRESH},
    )
    path, headers = "/v1/messages", {"x-api-key": "any", "anthropic-version": "2023-06-01"}
    answers = []
    for url, model in ((openai_stack.urls["bi-medix2"], "bi-medix2"), (openai_stack.stack.api, "bi-medix2")):
        async with http.post(url + path, json={**body, "model": model}, headers=headers) as answer:
            assert answer.status == 200
            answers.append(await answer.json())
    url = openai_stack.stack.api + path
    async with http.post(url, json={**body, "model": "bi-medix2", "stream": True}, headers=headers) as answer:
        streamed = await answer.text()

    expected, got = answers
    assert facts(got) == {**facts(expected), "model": "bi-medix2"}
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: ")]
    assert (events[0]["type"], events[0]["message"]["model"]) == ("message_start", "bi-medix2")
    assert events[-1]["type"] == "message_stop"
    texts = [event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"]
    assert "".join(texts) == got["content"][0]["text"]


async def test_what_other_clients_send_besides_is_no_obstacle(openai_stack: OpenAiStack) -> None:
    """Open WebUI names its user by an object and sends cookies; Continue accepts JSON only and sends two
    keys, which are none of a backend's business; LiteLLM asks for a stream's options without a stream.
    """
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    headers = {"Accept": "application/json", "Authorization": "Bearer x", "x-api-key": "x", "Cookie": "a=b"}
    expected = await openai_stack.direct["small"].chat.completions.create(**body, model="small")
    habits: list[dict[str, Any]] = [
        {"user": {"id": "7", "name": "Ada"}, "stream": None},
        {"stream": False, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_usage": True}, "user": ""},
    ]
    for habit in habits:
        url = f"{openai_stack.base_url}/chat/completions"
        async with openai_stack.stack.http.post(
            url, json={**body, "model": "auto:Chat", **habit}, headers=headers
        ) as answer:
            text = await answer.text()
        assert answer.status == 200, text
        assert expected.choices[0].message.content in "".join(_texts(text))
        sent = openai_stack.recorded.last
        assert not {"authorization", "x-api-key", "cookie"} & sent.headers.keys()
        assert sent.json.get("user") == habit.get("user")


def _texts(text: str) -> list[str]:
    if not text.startswith("data: "):
        return [choice["message"]["content"] for choice in json.loads(text)["choices"]]
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]


async def test_a_slash_too_many_is_forgiven_and_a_missing_v1_is_told(openai_stack: OpenAiStack) -> None:
    body: dict[str, Any] = {"model": "small", "messages": MESSAGES, "max_tokens": 2}
    async with openai_client(f"{openai_stack.base_url}/") as client:
        assert await client.chat.completions.create(**body)
    async with openai_client(openai_stack.stack.api) as client:
        with pytest.raises(openai.NotFoundError, match="/v1"):
            await client.chat.completions.create(**body)
