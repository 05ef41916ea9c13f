"""The dialects that clients speak: how each words an error, and how its streams end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from pydantic_core import to_json

from services.api.gateway.refusals import Refusal


class Dialect:
    """OpenAI's chat completions, completions and embeddings."""

    ends: tuple[bytes, ...] = ()
    """What a piece of the stream holds in which it says that it is complete, beside ``[DONE]``."""
    fails: tuple[bytes, ...] = ()
    """What a piece of the stream holds in which the backend says that it failed, beside error events."""
    says_finish_reason = True
    """Whether a finish reason alone will do as the end of a stream."""

    def error_object(self, refusal: Refusal) -> Mapping[str, JsonValue]:
        return {
            "error": {
                "message": refusal.message,
                "type": _openai_type(refusal.status),
                "param": refusal.param,
                "code": refusal.code,
            }
        }

    def error_body(self, refusal: Refusal) -> bytes:
        """The body of an error answer."""
        return to_json(self.error_object(refusal))

    def error_event(self, refusal: Refusal) -> bytes:
        """The error in a stream that began with status 200, and the stream's end."""
        return b"data: " + self.error_body(refusal) + b"\n\ndata: [DONE]\n\n"


class ResponsesDialect(Dialect):
    """OpenAI's responses; their last event repeats the whole answer, however long that is."""

    ends = (b"event: response.completed", b"event: response.incomplete")
    fails = (b"event: response.failed",)
    says_finish_reason = False

    def error_event(self, refusal: Refusal) -> bytes:
        # ``error`` is what OpenAI's own client looks for; the rest is the event of the specification.
        event = {
            "type": "error",
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
            **self.error_object(refusal),
        }
        return b"event: error\ndata: " + to_json(event) + b"\n\n"


class AnthropicDialect(Dialect):
    """Anthropic's messages."""

    ends = (b"event: message_stop",)
    says_finish_reason = False

    def error_object(self, refusal: Refusal) -> Mapping[str, JsonValue]:
        return {
            "type": "error",
            "error": {"type": _anthropic_type(refusal.status), "message": refusal.message},
        }

    def error_event(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + self.error_body(refusal) + b"\n\n"


OPENAI = Dialect()
RESPONSES = ResponsesDialect()
ANTHROPIC = AnthropicDialect()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One call of the OpenAI-compatible surface, at the same path here and on the backend.

    ``needs``: the field without which it makes no sense. ``aggregates``: answers that are streamed from
    llama.cpp and put together here, since it goes on generating for a gone client that does not stream.
    """

    path: str
    summary: str
    needs: str
    dialect: Dialect
    streams: bool = True
    aggregates: bool = False

    @property
    def chat(self) -> bool:
        """Whether its input is a list of messages."""
        return self.needs == "messages"


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("/v1/chat/completions", "A chat completion (OpenAI)", "messages", OPENAI, aggregates=True),
    Endpoint("/v1/completions", "A completion of a text (OpenAI)", "prompt", OPENAI, aggregates=True),
    Endpoint(
        "/v1/embeddings", "Embeddings (OpenAI), where the backend has them", "input", OPENAI, streams=False
    ),
    Endpoint("/v1/responses", "A response (OpenAI), where the backend has them", "input", RESPONSES),
    Endpoint("/v1/messages", "A message (Anthropic), where the backend has them", "messages", ANTHROPIC),
)


def comment(text: str) -> bytes:
    """A line of a stream that clients skip and people read."""
    return f": {text}\n\n".encode()


def quoted(name: str) -> set[bytes]:
    """A name as JSON writes it, with and without escapes."""
    return {json.dumps(name).encode(), json.dumps(name, ensure_ascii=False).encode()}


def _openai_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
