"""Requests as the simulated vLLM understands them, and how it refuses what it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.simulator.asks import Ask, Refusal, count_tokens

_DEFAULT_TOKENS = 16
"""Of a completion; a chat goes on to the end of the context unless it ends itself."""
_CHAT_TOKENS = 128
"""Where a chat without ``max_tokens`` comes to its own end."""
_TOKENS_PER_MESSAGE = 5


@dataclass(frozen=True, slots=True)
class VllmAsk(Ask):
    """A completion that is asked for; ``continuous_usage`` wants running usage in every chunk."""

    continuous_usage: bool


def parse_ask(body: bytes, *, chat: bool, name: str, context_tokens: int) -> VllmAsk:
    """A completion request; raises ``Refusal`` as vLLM would."""
    data = _object(body)
    wanted = _whole(data, "max_tokens")
    seed = _whole(data, "seed")
    asked = data.get("model")
    if asked is not None and asked != name:
        raise Refusal(
            404,
            f"The model `{asked}` does not exist. Valid aliases: {name}.",
            "NotFoundError",
            param="model",
        )
    text, tokens = _messages(data) if chat else _prompt(data)
    room = _room(tokens, wanted, context_tokens)
    options = data.get("stream_options")
    options = options if isinstance(options, dict) else {}
    ends_itself = chat and wanted is None
    usual = _CHAT_TOKENS if chat else _DEFAULT_TOKENS
    return VllmAsk(
        chat=chat,
        text=text,
        prompt_tokens=tokens,
        max_tokens=min(room, usual if wanted is None else wanted),
        ends_itself=ends_itself,
        stream=bool(data.get("stream")),
        include_usage=bool(options.get("include_usage")),
        seed=seed,
        continuous_usage=bool(options.get("continuous_usage_stats")),
    )


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(body)
    except ValueError as error:
        raise _malformed("body", f"JSON decode error: {error}") from None
    if not isinstance(data, dict):
        raise _malformed("body", "Input should be a valid dictionary")
    return data


def _whole(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _malformed(f"body.{name}", "Input should be a valid integer")


def _prompt(data: Mapping[str, Any]) -> tuple[str, int]:
    prompt = data.get("prompt")
    if prompt is None:
        raise _bad("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if not isinstance(prompt, str):
        raise _bad("the simulator takes a prompt as one string only", "prompt")
    return prompt, max(1, count_tokens(prompt))


def _messages(data: Mapping[str, Any]) -> tuple[str, int]:
    messages = data.get("messages")
    if not isinstance(messages, list):
        raise _malformed("body.messages", "Field required")
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise _malformed("body.messages", "Field required")
        content = message.get("content")
        parts.append(content if isinstance(content, str) else json.dumps(content))
    return "\n".join(parts), sum(count_tokens(part) + _TOKENS_PER_MESSAGE for part in parts) or 1


def _room(tokens: int, wanted: int | None, context_tokens: int) -> int:
    """Tokens left for the answer, which is cut to them (seen); more than a whole context is refused."""
    if wanted is not None and wanted < 1:
        raise _bad(f"max_tokens must be at least 1, got {wanted}.", "max_tokens", wanted)
    if wanted is not None and wanted > context_tokens:
        raise _bad(
            f"max_tokens={wanted} cannot be greater than max_model_len={context_tokens}. "
            "Please request fewer output tokens.",
            "max_tokens",
            wanted,
        )
    if tokens >= context_tokens:
        raise _bad(
            f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains "
            f"at least {tokens} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            tokens,
        )
    return context_tokens - tokens


def _bad(message: str, param: str, value: int | None = None) -> Refusal:
    shown = f"(parameter={param})" if value is None else f"(parameter={param}, value={value})"
    return Refusal(400, f"{message} {shown}", "BadRequestError", param=param)


def _malformed(place: str, message: str) -> Refusal:
    return Refusal(
        400, f"1 validation error:\n  {{'loc': '{place}', 'msg': '{message}'}}", "Bad Request", param=place
    )
