"""What we read from a llama.cpp server, as the real one and the simulator both say it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.kit.backends import Backend, busy_slots, long_streams
from tests.kit.waiting import wait_until

CHAT = [{"role": "user", "content": "hi"}]


async def get(http: aiohttp.ClientSession, url: str) -> Any:
    async with http.get(url) as response:
        assert response.status == 200
        return await response.json()


async def test_health_says_ok_once_loaded(backend: Backend, http: aiohttp.ClientSession) -> None:
    assert await get(http, f"{backend.url}/health") == {"status": "ok"}


async def test_the_server_header_tells_llama_cpp_and_whether_it_is_simulated(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{backend.url}/health") as response:
        assert response.headers["Server"].startswith("llama.cpp")
        assert ("X-Simulated" in response.headers) == backend.simulated


async def test_props_tell_slots_and_the_context_of_one_slot(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    props = await get(http, f"{backend.url}/props")

    assert props["total_slots"] == backend.slots
    assert props["default_generation_settings"]["n_ctx"] == backend.context_tokens
    assert props["model_alias"] == backend.name
    assert props["is_sleeping"] is False


async def test_models_lists_the_one_model(backend: Backend, http: aiohttp.ClientSession) -> None:
    models = await get(http, f"{backend.url}/v1/models")

    assert models["object"] == "list"
    (model,) = models["data"]
    assert (model["id"], model["object"], model["owned_by"]) == (backend.name, "model", "llamacpp")
    assert model["meta"]["n_ctx"] == backend.context_tokens


async def test_idle_slots_are_listed_without_processing(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    slots = await get(http, f"{backend.url}/slots")

    assert [slot["id"] for slot in slots] == list(range(backend.slots))
    assert {slot["n_ctx"] for slot in slots} == {backend.context_tokens}
    assert {slot["is_processing"] for slot in slots} == {False}


async def test_a_busy_slot_tells_its_progress(backend: Backend, http: aiohttp.ClientSession) -> None:
    async def decoded() -> int:
        slots = await get(http, f"{backend.url}/slots")
        return max((slot["next_token"][0]["n_decoded"] for slot in slots if slot["is_processing"]), default=0)

    async with long_streams(http, backend.url, 1):
        first = await wait_until(decoded, "a slot has decoded a token")

        async def further() -> bool:
            return await decoded() > first

        await wait_until(further, "the slot has decoded more")
        slots = await get(http, f"{backend.url}/slots")

    busy = next(slot for slot in slots if slot["is_processing"])
    progress = busy["next_token"][0]
    assert progress["n_decoded"] + progress["n_remain"] == 4000
    assert busy["n_prompt_tokens"] >= progress["n_decoded"]
    assert busy["params"]["stream"] is True


async def test_slots_can_be_asked_to_fail_while_all_are_busy(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    async with long_streams(http, backend.url, backend.slots):

        async def all_busy() -> bool:
            return await busy_slots(http, backend.url) == backend.slots

        await wait_until(all_busy, "all slots are busy")
        async with http.get(f"{backend.url}/slots", params={"fail_on_no_slot": "1"}) as response:
            error = (await response.json())["error"]

    assert (response.status, error["type"]) == (503, "unavailable_error")


async def test_metrics_has_the_names_that_we_read(backend: Backend, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{backend.url}/metrics") as response:
        assert response.content_type == "text/plain"
        lines = (await response.text()).splitlines()

    names = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert names >= {
        "llamacpp:prompt_tokens_total",
        "llamacpp:prompt_seconds_total",
        "llamacpp:tokens_predicted_total",
        "llamacpp:tokens_predicted_seconds_total",
        "llamacpp:n_decode_total",
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
    }


async def test_tokenize_counts_tokens(backend: Backend, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{backend.url}/tokenize", json={"content": "the queue and the card"}) as response:
        tokens = (await response.json())["tokens"]

    assert len(tokens) >= 5
    assert all(isinstance(token, int) for token in tokens)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/completions", '{"prompt": "the queue"', id="cut off JSON"),
        pytest.param("/v1/completions", '{"max_tokens": 3}', id="no prompt"),
        pytest.param("/v1/completions", '{"prompt": 7}', id="prompt of a wrong type"),
        pytest.param("/v1/completions", '{"prompt": "hi", "max_tokens": "x"}', id="number of a wrong type"),
        pytest.param("/v1/chat/completions", '{"max_tokens": 3}', id="no messages"),
        pytest.param("/v1/chat/completions", '{"messages": 7}', id="messages of a wrong type"),
        pytest.param("/v1/chat/completions", '{"messages": [{"role": "user"}]}', id="no content"),
    ],
)
async def test_a_bad_body_is_refused_with_400(
    backend: Backend, http: aiohttp.ClientSession, path: str, body: str
) -> None:
    async with http.post(backend.url + path, data=body) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"], error["type"]) == (400, 400, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_beyond_the_context_is_refused_with_its_count(
    backend: Backend, http: aiohttp.ClientSession, stream: bool
) -> None:
    body = {"prompt": "the queue " * 8000, "max_tokens": 3, "stream": stream}
    async with http.post(f"{backend.url}/v1/completions", json=body) as response:
        error = (await response.json())["error"]

    assert (response.status, error["type"]) == (400, "exceed_context_size_error")
    assert error["n_prompt_tokens"] > error["n_ctx"] == backend.context_tokens
    assert "exceeds the available context size" in error["message"]


async def test_an_unknown_path_is_answered_404(backend: Backend, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{backend.url}/nowhere") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (404, "not_found_error")


async def test_a_chat_answer_without_stream_is_one_object(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    body = {"messages": CHAT, "max_tokens": 5}
    async with http.post(f"{backend.url}/v1/chat/completions", json=body) as response:
        answer = await response.json()

    assert (response.status, answer["object"], answer["model"]) == (200, "chat.completion", backend.name)
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


async def test_a_chat_stream_opens_with_the_role_and_closes_with_usage_and_done(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    body = {
        "messages": CHAT,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with http.post(f"{backend.url}/v1/chat/completions", json=body) as response:
        events = (await response.text()).strip().split("\n\n")

    assert (response.status, response.content_type) == (200, "text/event-stream")
    assert all(event.startswith("data: ") for event in events)
    assert events.pop() == "data: [DONE]"
    first, *tokens, end, last = [json.loads(event.removeprefix("data: ")) for event in events]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert len(tokens) == 5
    assert all(isinstance(chunk["choices"][0]["delta"]["content"], str) for chunk in tokens)
    assert {chunk["object"] for chunk in (first, *tokens, end, last)} == {"chat.completion.chunk"}
    assert (end["choices"][0]["finish_reason"], end["choices"][0]["delta"]) == ("length", {})
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)
    assert last["timings"]["predicted_n"] == 5


async def test_a_text_stream_closes_with_usage_in_its_last_chunk(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    body = {"prompt": "the queue", "max_tokens": 5, "stream": True}
    async with http.post(f"{backend.url}/v1/completions", json=body) as response:
        events = (await response.text()).strip().split("\n\n")

    assert events.pop() == "data: [DONE]"
    *tokens, last = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None] * 5
    assert {chunk["object"] for chunk in (*tokens, last)} == {"text_completion"}
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("", "length")
    assert last["usage"]["completion_tokens"] == 5
    assert last["timings"]["prompt_ms"] >= 0
