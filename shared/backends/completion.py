"""One completion by a backend: always streamed from it, so that closing the connection frees its slot."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from shared.backends.aggregate import Aggregate
from shared.backends.errors import (
    BackendError,
    Broken,
    Interrupted,
    error_detail,
    from_status,
    retry_after_s,
)
from shared.backends.http import HttpClient
from shared.backends.request import headers, root_url
from shared.backends.response import Response
from shared.backends.sse import SseParser
from shared.json_text import compact
from shared.masking import without_our_secrets
from shared.states import BackendType

ABORTED = "abort"
"""The finish reason by which vLLM says that it broke an answer off, on a stream that looks complete."""
_ERROR_BODY_BYTES = 16 * 1024
_EVENT_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """What to ask of which backend.

    ``body`` has ``prompt`` or ``messages``, not ``model`` nor ``stream``. ``idle_timeout_s`` is the longest
    silence before the headers (a queued request gets none until a slot takes it) or between bytes; a
    server's keep-alive comments count as life. ``max_result_bytes`` bounds the generated text in UTF-8.
    """

    base_url: str
    backend: BackendType
    upstream_name: str
    body: Mapping[str, JsonValue]
    api_key: str | None = field(repr=False)
    connect_timeout_s: float
    idle_timeout_s: float
    max_result_bytes: int
    request_id: str = ""

    @property
    def chat(self) -> bool:
        return "messages" in self.body

    @property
    def url(self) -> str:
        return root_url(self.base_url) + ("/v1/chat/completions" if self.chat else "/v1/completions")

    @property
    def payload(self) -> dict[str, JsonValue]:
        """The body as it goes out."""
        options: dict[str, JsonValue] = {"include_usage": True}
        return {**self.body, "model": self.upstream_name, "stream": True, "stream_options": options}


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back. Times are ours unless said; None = the backend did not tell.

    ``response`` is OpenAI's object (``chat.completion`` or ``text_completion``). ``first_token_ms`` is None
    for an empty answer. ``prompt_ms`` and ``output_ms`` are the backend's own (llama.cpp ``timings``),
    and so is ``prompt_processed``, the tokens that ``prompt_ms`` went into (cached ones are not in it).
    """

    text: str
    finish_reason: str | None
    usage: dict[str, JsonValue] | None
    response: dict[str, JsonValue]
    first_token_ms: float | None
    total_ms: float
    prompt_tokens: int | None
    output_tokens: int | None
    prompt_ms: float | None
    prompt_processed: int | None
    output_ms: float | None
    truncated: bool


async def complete(
    http: HttpClient,
    call: CompletionCall,
    on_first_token: Callable[[], None] | None = None,
    on_answer: Callable[[Completion], Awaitable[None]] | None = None,
) -> Completion:
    """Run one completion to its end; raises a ``BackendError``.

    ``on_answer`` gets it when it is complete, before the backend has closed its connection. Cancelling the
    awaiting task closes the connection, which frees the backend's slot.
    """
    started = time.monotonic()
    first_token_ms: float | None = None
    result = Aggregate(chat=call.chat, limit=call.max_result_bytes)
    response = await _open_stream(http, call)
    try:
        parser, most = SseParser(), call.max_result_bytes + _EVENT_OVERHEAD_BYTES
        more = True
        while more:
            chunk = await response.readany()
            more = bool(chunk)
            for event in parser.feed(chunk) if chunk else parser.close():
                if result.add(event) and first_token_ms is None:
                    first_token_ms = _ms_since(started)
                    if on_first_token is not None:
                        on_first_token()
                if result.done or result.truncated:
                    more = False
                    break
            if parser.pending_bytes > most:
                raise Broken(f"one event of the stream is longer than {call.max_result_bytes} bytes")
        _check_end(result)
        completion = _completion(result, first_token_ms, _ms_since(started))
        if on_answer is not None:
            await on_answer(completion)
        if not result.truncated:
            response.settle()
    finally:
        response.close()
    return completion


async def _open_stream(http: HttpClient, call: CompletionCall) -> Response:
    """The backend's accepted answer (status 200, an event stream); any other raises a ``BackendError``."""
    response = await http.post(
        call.url,
        compact(call.payload),
        headers(call.api_key, call.request_id),
        connect_timeout_s=call.connect_timeout_s,
        idle_timeout_s=call.idle_timeout_s,
        keep=call.backend is BackendType.VLLM,
    )
    if response.status == 200 and response.content_type == "text/event-stream":
        return response
    try:
        raise await refusal(response)
    finally:
        response.close()


async def refusal(response: Response) -> BackendError:
    """What an answer means that is not the one that was asked for."""
    body = await _error_body(response)
    error = _refusal_of(response, error_detail(body) or response.reason or "no words")
    error.answer = without_our_secrets(body)
    return error


def _refusal_of(response: Response, detail: str) -> BackendError:
    if response.status == 200:
        return Broken(f"answered {response.content_type} where an event stream was asked for: {detail}", 200)
    if 300 <= response.status < 400:
        detail = f"redirects to {response.header('Location') or 'nowhere'}: register that address instead"
    wait_s = retry_after_s(response.header("Retry-After"), response.header("Date"))
    return from_status(response.status, detail, wait_s)


async def _error_body(response: Response) -> bytes:
    body = b""
    try:
        while len(body) < _ERROR_BODY_BYTES and (chunk := await response.readany()):
            body += chunk
    except BackendError as error:
        return body or f"(its words broke off: {error.detail})".encode()  # the status decides what to do
    return body


def _check_end(result: Aggregate) -> None:
    if result.truncated:
        return
    if not result.done and not result.finished:
        raise Interrupted("backend_interrupted", "the stream ended before the answer did")
    if result.finish_reason == ABORTED:
        raise Interrupted("backend_interrupted", "the backend aborted the answer (put to sleep or paused?)")
    if result.empty:
        raise Broken("the stream held no choice")


def _completion(result: Aggregate, first_token_ms: float | None, total_ms: float) -> Completion:
    usage, timings = result.usage or {}, result.timings
    return Completion(
        text=result.text,
        finish_reason=result.finish_reason,
        usage=result.usage,
        response=result.response(),
        first_token_ms=first_token_ms,
        total_ms=total_ms,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        prompt_ms=_number(timings.get("prompt_ms")),
        prompt_processed=_count(timings.get("prompt_n")),
        output_ms=_number(timings.get("predicted_ms")),
        truncated=result.truncated,
    )


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1000.0


def _count(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
