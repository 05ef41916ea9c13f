"""OpenAI's own client against real llama.cpp, directly and through the whole stack: it gets the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.kit.openai_client import FRESH, MESSAGES, facts, said
from tests.kit.openai_stack import OpenAiStack

pytestmark = [pytest.mark.llamacpp, pytest.mark.asyncio(loop_scope="module")]
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "seed": 42, "extra_body": FRESH}
SCHEMA = {"type": "object", "properties": {"model": {"enum": ["small", "large"]}}, "required": ["model"]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "load", "description": "Load a model", "parameters": SCHEMA, "strict": True},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 1.0, "n": 2},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0, "stop": [" load"]},
        {
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
        {"temperature": 0, "tools": [TOOL], "tool_choice": "none", "user": "ward 3"},
    ],
    ids=lambda changes: "+".join(changes),
)
async def test_the_same_seed_gives_the_same_answer_as_the_backend_itself(
    openai_stack: OpenAiStack, changes: dict[str, Any]
) -> None:
    direct, ours = openai_stack.direct["small"].chat.completions, openai_stack.client.chat.completions
    body = {**CHAT, **changes, "model": "small"}

    expected, got = await direct.create(**body), await ours.create(**body)
    there, here = await direct.create(**body, stream=True), await ours.create(**body, stream=True)
    chunks, expected_chunks = [one async for one in here], [one async for one in there]

    assert facts(got) == facts(expected)
    assert [facts(chunk) for chunk in chunks] == [facts(chunk) for chunk in expected_chunks]
    assert got.model_extra is not None
    assert got.model_extra["timings"].keys() == (expected.model_extra or {})["timings"].keys()
    if "n" not in changes:
        assert said(chunks) == got.choices[0].message.content


@pytest.mark.parametrize("prompt", ["the gpu", ["the gpu", "the queue"]])
@pytest.mark.parametrize("logprobs", [None, 2])
async def test_completions_of_texts_are_the_backends_own(
    openai_stack: OpenAiStack, prompt: Any, logprobs: int | None
) -> None:
    body: dict[str, Any] = {
        "model": "small",
        "prompt": prompt,
        "max_tokens": 6,
        "temperature": 0,
        "extra_body": FRESH,
    }
    body |= {"logprobs": logprobs} if logprobs else {}
    direct, ours = openai_stack.direct["small"].completions, openai_stack.client.completions

    assert facts(await ours.create(**body)) == facts(await direct.create(**body))
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    there, here = await direct.create(**body, **options), await ours.create(**body, **options)
    chunks, expected = [facts(one) async for one in here], [facts(one) async for one in there]
    assert sorted(chunks, key=json.dumps) == sorted(expected, key=json.dumps)  # two prompts, one race
    assert chunks[-1]["usage"]["completion_tokens"] == 6


async def test_a_client_without_asyncio_reads_whole_answers_and_streams(openai_stack: OpenAiStack) -> None:
    def ask() -> tuple[str, str, list[str]]:
        with openai.OpenAI(base_url=openai_stack.base_url, api_key="any", max_retries=0) as client:
            whole = client.chat.completions.create(model="small", temperature=0, **CHAT)
            with client.chat.completions.create(model="small", temperature=0, **CHAT, stream=True) as stream:
                streamed = said(stream)
            return (
                whole.choices[0].message.content or "",
                streamed,
                [model.id for model in client.models.list()],
            )

    whole, streamed, names = await asyncio.to_thread(ask)

    assert len(whole.split()) == 12
    assert streamed == whole
    assert "small" in names


async def test_what_the_client_sends_reaches_the_backend_untouched(openai_stack: OpenAiStack) -> None:
    extra: dict[str, Any] = {"top_k": 7, "mirostat": 0, "not_invented_yet": {"deep": [1, None, "ü"]}}
    body: dict[str, Any] = {
        "messages": MESSAGES,
        "max_tokens": 4,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "load"}},
        "parallel_tool_calls": False,
        "logit_bias": {"50": -1},
        "metadata": {"ward": "3"},
    }
    sent = {**body, **extra, "model": "small"}

    stream = await openai_stack.client.chat.completions.create(
        **body, model="small", extra_body=extra, stream=True
    )
    assert [chunk async for chunk in stream]
    assert openai_stack.recorded.last.json == {**sent, "stream": True}
    assert "authorization" not in openai_stack.recorded.last.headers

    await openai_stack.client.chat.completions.create(**body, model="small", extra_body=extra)
    assert openai_stack.recorded.last.json == {
        **sent,
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    await openai_stack.client.chat.completions.create(**body, model="auto:Chat", extra_body=extra)
    assert openai_stack.recorded.last.json == {
        **sent,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _tool_call_stream() -> bytes:
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {
            "tool_calls": [
                {"index": 0, "id": "c7", "type": "function", "function": {"name": "load", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"model":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"large"}'}}]},
        {},
    ]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "small"}
    choices: list[Any] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices[-1]["finish_reason"] = "tool_calls"
    events = [json.dumps({**head, "choices": [choice]}) for choice in choices]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


async def test_a_tool_call_arrives_as_one_streamed_or_not(openai_stack: OpenAiStack) -> None:
    """In llama.cpp's own events: a model of random weights calls no tools."""
    body: dict[str, Any] = {"model": "small", "messages": MESSAGES, "tools": [TOOL]}
    openai_stack.recorded.stream = (_tool_call_stream(),)
    whole = await openai_stack.client.chat.completions.create(**body)
    openai_stack.recorded.stream = (_tool_call_stream(),)
    async with openai_stack.client.chat.completions.stream(**body) as stream:
        streamed = await stream.get_final_completion()

    for answer in (whole, streamed):
        (choice,) = answer.choices
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert (choice.finish_reason, choice.message.content, call.id) == ("tool_calls", None, "c7")
        assert (call.function.name, json.loads(call.function.arguments)) == ("load", {"model": "large"})


async def test_embeddings_are_the_backends_own(openai_stack: OpenAiStack) -> None:
    """The client asks for base64 unless it is told otherwise."""
    direct, ours = openai_stack.direct["embedder"].embeddings, openai_stack.client.embeddings
    texts = ["the gpu", "the queue"]

    for changes in ({}, {"encoding_format": "float"}):
        body: dict[str, Any] = {"model": "embedder", "input": texts, **changes}
        got, expected = await ours.create(**body), await direct.create(**body)
        assert facts(got) == facts(expected)
        assert [len(one.embedding) for one in got.data] == [64, 64]
        assert got.data[0].embedding != got.data[1].embedding


async def test_the_models_are_listed_and_found_one_by_one(openai_stack: OpenAiStack) -> None:
    names = [model.id async for model in openai_stack.client.models.list()]

    assert {"small", "bi-medix2", "clinic/medix", "embedder", "auto", "auto:MedicalQA"} <= set(names)
    for name in names:
        assert (await openai_stack.client.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await openai_stack.client.models.retrieve("nobody/knows it")


@pytest.mark.parametrize(
    ("model", "headers", "registered", "named"),
    [
        ("auto:MedicalQA", {}, "bi-medix2", "bi-medix2"),
        ("auto", {"X-Agent-Type": "MedicalQA"}, "bi-medix2", "bi-medix2"),
        ("clinic/medix", {"X-Priority": "9", "X-Mode": "interactive"}, "bi-medix2", "clinic/medix"),
        ("auto:Chat", {}, "small", "small"),
    ],
)
async def test_the_decision_is_in_the_headers_and_the_public_name_in_the_answer(
    openai_stack: OpenAiStack, model: str, headers: dict[str, str], registered: str, named: str
) -> None:
    chat = openai_stack.client.chat.completions
    raw = await chat.with_raw_response.create(model=model, extra_headers=headers, **CHAT)
    async with chat.with_streaming_response.create(
        model=model, extra_headers=headers, **CHAT, stream=True
    ) as open_one:
        stream = await open_one.parse()
        chunks = [chunk async for chunk in stream]
    direct = await openai_stack.direct[registered].chat.completions.create(model="any", **CHAT)
    whole = raw.parse()

    assert whole.model == named
    assert {chunk.model for chunk in chunks} == {named}
    assert said(chunks) == whole.choices[0].message.content == direct.choices[0].message.content
    for found in (raw.headers, open_one.headers):
        job = await openai_stack.stack.ended(found["x-orchestrator-job-id"])
        assert found["x-orchestrator-model"] == job["decision"]["model"] == registered
        assert (found["x-orchestrator-backend"], found["x-orchestrator-reason"]) == (
            "llama_cpp",
            job["decision"]["reason"],
        )
        assert int(found["x-orchestrator-queue-ms"]) >= 0
        assert float(found["x-orchestrator-overhead-ms"]) > 0
        assert (job["state"], job["result"]["text"]) == ("succeeded", None)
