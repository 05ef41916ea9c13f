"""What a vLLM server answers: about itself, to completions, and to what it can't run.

On the real server (CPU build, ``make test-vllm``) and on the simulated one, directly and through our gateway;
told in ``docs/vllm.md``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.backends.errors import Rejected
from tests.kit.vllm_backends import VllmClient

CHAT: list[Any] = [{"role": "user", "content": "hi"}]
DONE = "data: [DONE]"


def data(line: str) -> Any:
    return json.loads(line.removeprefix("data: "))


async def test_health_and_ping_are_empty_and_the_version_is_told(vllm: VllmClient) -> None:
    assert await vllm.status("/health") == (200, "")
    assert await vllm.status("/ping") == (200, "")
    version = (await vllm.get("/version"))["version"]
    assert version.startswith("0.")
    assert ("simulated" in version) == vllm.server.simulated


async def test_models_tell_the_name_the_context_and_the_server(vllm: VllmClient) -> None:
    answer = await vllm.get("/v1/models")

    (model,) = answer["data"]
    assert (answer["object"], model["object"], model["parent"]) == ("list", "model", None)
    assert (model["id"], model["owned_by"], model["max_model_len"]) == ("tiny", "vllm", 2048)


@pytest.mark.parametrize("path", ["/props", "/slots", "/nowhere"])
async def test_what_is_llama_cpps_is_not_found(vllm: VllmClient, path: str) -> None:
    status, text = await vllm.status(path)

    assert (status, json.loads(text)) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "the queue"}, "text_completion"),
        ("/v1/chat/completions", {"messages": CHAT}, "chat.completion"),
    ],
)
async def test_an_answer_without_stream_is_one_object(
    served: VllmClient, path: str, body: dict[str, Any], kind: str
) -> None:
    status, answer = await served.ask(path, **body, max_tokens=6)

    assert status == 200
    assert {"id", "created", "model", "system_fingerprint"} <= set(answer)
    assert (answer["object"], answer["model"]) == (kind, "tiny")
    (choice,) = answer["choices"]
    said = choice["message"]["content"] if "message" in choice else choice["text"]
    assert (choice["index"], choice["finish_reason"], choice["stop_reason"]) == (0, "length", None)
    assert len(said.split()) >= 6
    usage = answer["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6


async def test_a_streamed_prompt_ends_with_the_reason_in_its_last_chunk(served: VllmClient) -> None:
    _, chunks = await served.ask(prompt="the queue", max_tokens=4, stream=True)

    assert chunks.pop() == DONE
    parsed = [data(chunk) for chunk in chunks]
    assert len({chunk["id"] for chunk in parsed}) == 1
    assert {chunk["object"] for chunk in parsed} == {"text_completion"}
    *before, last = [chunk["choices"][0] for chunk in parsed]
    assert (last["finish_reason"], {choice["finish_reason"] for choice in before} <= {None}) == (
        "length",
        True,
    )
    assert len("".join(choice["text"] for choice in [*before, last]).split()) >= 4
    assert all(chunk.get("usage") is None for chunk in parsed)


async def test_a_streamed_chat_begins_with_the_role_and_an_empty_text(served: VllmClient) -> None:
    _, chunks = await served.ask("/v1/chat/completions", messages=CHAT, max_tokens=2, stream=True)

    assert chunks.pop() == DONE
    first, *rest = [data(chunk)["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert (first["finish_reason"], rest[-1]["finish_reason"]) == (None, "length")
    assert all(choice["delta"]["content"] for choice in rest)


async def test_usage_comes_last_where_it_is_asked_for(served: VllmClient) -> None:
    _, chunks = await served.ask(
        prompt="the queue", max_tokens=3, stream=True, stream_options={"include_usage": True}
    )

    *before, last = [data(chunk) for chunk in chunks[:-1]]
    assert {chunk.get("usage") is None for chunk in before} == {True}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)


async def test_continuous_usage_is_in_every_chunk(served: VllmClient) -> None:
    """A chunk holds one token, or several where its api server was slow to send."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, chunks = await served.ask(prompt="the queue", max_tokens=3, stream=True, stream_options=options)

    usages = [data(chunk)["usage"]["completion_tokens"] for chunk in chunks[:-1]]
    assert usages == sorted(usages)
    assert usages[-2:] == [3, 3]


async def test_our_client_gets_text_usage_and_its_first_token(served: VllmClient) -> None:
    done = await served.complete({"messages": CHAT, "max_tokens": 7})

    assert (done.finish_reason, done.output_tokens, done.truncated) == ("length", 7, False)
    assert len(done.text.split()) >= 7
    assert ("[simulated tiny]" in done.text) == served.server.simulated
    assert done.first_token_ms is not None
    assert (done.prompt_ms, done.output_ms) == (None, None)  # it has no timings of its own


async def test_a_prompt_without_max_tokens_gets_sixteen(served: VllmClient) -> None:
    _, answer = await served.ask(prompt="the queue")

    assert answer["usage"]["completion_tokens"] == 16


async def test_an_answer_that_would_not_fit_is_cut_to_the_context(served: VllmClient) -> None:
    _, answer = await served.ask(prompt="the queue " * 700, max_tokens=2000)

    assert answer["usage"]["total_tokens"] == served.server.context_tokens
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "hi"}), ("/v1/chat/completions", {"messages": CHAT})]
)
async def test_an_unknown_model_is_not_found(served: VllmClient, path: str, body: dict[str, Any]) -> None:
    status, answer = await served.ask(path, model="nope", max_tokens=2, **body)

    error = answer["error"]
    assert (status, error["code"], error["type"], error["param"]) == (404, 404, "NotFoundError", "model")
    assert "The model `nope` does not exist." in error["message"]


async def test_our_client_is_told_of_an_unknown_model_for_good(served: VllmClient) -> None:
    with pytest.raises(Rejected, match="does not exist") as caught:
        await served.complete(upstream_name="nope")

    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "the queue " * 1500}, "input_tokens", "maximum context length is 2048 tokens"),
        ({"prompt": "hi", "max_tokens": 3000}, "max_tokens", "cannot be greater than max_model_len=2048"),
        ({"prompt": "hi", "max_tokens": 0}, "max_tokens", "must be at least 1"),
    ],
)
async def test_what_can_never_run_is_a_bad_request(
    served: VllmClient, body: dict[str, Any], param: str, words: str
) -> None:
    status, answer = await served.ask(**body)

    error = answer["error"]
    assert (status, error["code"], error["type"], error["param"]) == (400, 400, "BadRequestError", param)
    assert words in error["message"]


async def test_a_missing_prompt_is_a_bad_request(served: VllmClient) -> None:
    """The gateway says so itself, in its own words."""
    status, answer = await served.ask()

    error = answer["error"]
    own = served.door != served.server.url
    assert (status, error["param"]) == (400, "prompt")
    assert (error["type"], error["code"]) == (
        ("invalid_request_error", "invalid_value") if own else ("BadRequestError", 400)
    )


async def test_a_malformed_body_is_a_bad_request_in_other_words(served: VllmClient) -> None:
    status, answer = await served.ask(prompt="hi", max_tokens="many")

    assert (status, answer["error"]["type"], answer["error"]["param"]) == (
        400,
        "Bad Request",
        "body.max_tokens",
    )
