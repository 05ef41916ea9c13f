"""Requests as the simulated llama.cpp understands them, and how it refuses what it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

_CHARS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 5
"""What a chat template puts around each message."""
_NUMBERS = ("max_tokens", "temperature", "top_p", "seed")
_DEFAULT_TOKENS = 128
"""Where an answer without ``max_tokens`` comes to its own end."""


class Refusal(Exception):
    """An error answer: its HTTP status and its error object."""

    def __init__(self, status: int, message: str, error_type: str, **more: JsonValue) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s: float | None = None
        self.body: dict[str, JsonValue] = {
            "error": {"code": status, "message": message, "type": error_type, **more}
        }


@dataclass(frozen=True, slots=True)
class Ask:
    """A completion that is asked for; ``text`` is the whole prompt, ``max_tokens`` what may be generated."""

    chat: bool
    text: str
    prompt_tokens: int
    max_tokens: int
    ends_itself: bool
    stream: bool
    include_usage: bool
    seed: int | None


def count_tokens(text: str) -> int:
    """Tokens of a text by rule of thumb: four characters each."""
    return -(-len(text) // _CHARS_PER_TOKEN)


def parse_object(body: bytes) -> Mapping[str, Any]:
    """A JSON object out of a request body; raises ``Refusal``."""
    try:
        data = json.loads(body)
    except ValueError as error:
        raise invalid(f"[json.exception.parse_error.101] parse error: {error}") from None
    if not isinstance(data, dict):
        raise invalid("[json.exception.type_error.304] cannot use at() with this type")
    return data


def parse_ask(body: bytes, *, chat: bool, context_tokens: int) -> Ask:
    """A completion request; raises ``Refusal`` as llama.cpp would."""
    data = parse_object(body)
    for name in _NUMBERS:
        value = data.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise invalid(f"Field '{name}': [json.exception.type_error.302] type must be number")
    text, tokens = _messages(data) if chat else _prompt(data)
    if tokens >= context_tokens:
        raise _overflow(tokens, context_tokens)
    room = context_tokens - tokens
    wanted = data.get("max_tokens")
    options = data.get("stream_options")
    return Ask(
        chat=chat,
        text=text,
        prompt_tokens=tokens,
        max_tokens=min(room, _DEFAULT_TOKENS if wanted is None or wanted < 0 else max(1, int(wanted))),
        ends_itself=wanted is None or wanted < 0,
        stream=bool(data.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        seed=data.get("seed"),
    )


def _prompt(data: Mapping[str, Any]) -> tuple[str, int]:
    if "prompt" not in data:
        raise invalid("[json.exception.out_of_range.403] key 'prompt' not found")
    prompt = data["prompt"]
    if not isinstance(prompt, str):
        raise invalid('"prompt" elements must be a string (the simulator takes no token lists)')
    return prompt, max(1, count_tokens(prompt))


def _messages(data: Mapping[str, Any]) -> tuple[str, int]:
    messages = data.get("messages")
    if messages is None:
        raise invalid("'messages' is required")
    if not isinstance(messages, list):
        raise invalid("Expected 'messages' to be an array")
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or "content" not in message:
            raise invalid("All non-assistant messages must contain 'content'")
        content = message["content"]
        parts.append(content if isinstance(content, str) else json.dumps(content))
    return "\n".join(parts), sum(count_tokens(part) + _TOKENS_PER_MESSAGE for part in parts) or 1


def invalid(message: str) -> Refusal:
    return Refusal(400, message, "invalid_request_error")


def _overflow(tokens: int, context_tokens: int) -> Refusal:
    return Refusal(
        400,
        f"request ({tokens} tokens) exceeds the available context size ({context_tokens} tokens), "
        "try increasing it",
        "exceed_context_size_error",
        n_prompt_tokens=tokens,
        n_ctx=context_tokens,
    )
