"""What the simulated model says, in vLLM's words: chunks of a stream, or one object."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import JsonValue

from services.simulator.answers import DONE, FINGERPRINT, event
from services.simulator.asks import Refusal
from services.simulator.vllm_asks import VllmAsk


class VllmAnswer:
    """One answer in the making; ``number`` makes its id."""

    def __init__(self, model: str, ask: VllmAsk, number: int) -> None:
        self._ask = ask
        self._head: dict[str, JsonValue] = {
            "id": f"{'chatcmpl' if ask.chat else 'cmpl'}-simulated-{number}",
            "created": int(time.time()),
            "model": model,
        }
        self._chunk_kind = "chat.completion.chunk" if ask.chat else "text_completion"
        self._tail: dict[str, JsonValue] = {"system_fingerprint": FINGERPRINT}

    @property
    def finish_reason(self) -> str:
        return "stop" if self._ask.ends_itself else "length"

    def opening(self) -> bytes:
        """A chat stream begins with the role and an empty text."""
        if not self._ask.chat:
            return b""
        delta: dict[str, JsonValue] = {"role": "assistant", "content": ""}
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}], 0)

    def tokens(self, some: Sequence[str], before: int, end: str | None) -> bytes:
        """One event for each token, ``before`` the first of which so many were written.

        ``end`` is the finish reason that the last one carries; an abort may come without a token.
        """
        texts = list(some) or ([""] if end else [])
        last = len(texts) - 1
        return b"".join(
            self._event([self._choice(text, end if index == last else None)], before + index + bool(some))
            for index, text in enumerate(texts)
        )

    def closing(self, written: int) -> bytes:
        """Usage, if it was asked for, and the end."""
        if not self._ask.include_usage:
            return DONE
        return event({**self._chunk([]), "usage": self._usage(written), **self._tail}) + DONE

    def whole(self, text: str, written: int, end: str) -> dict[str, JsonValue]:
        """The answer to a request without ``stream``."""
        choice: dict[str, JsonValue] = {
            "index": 0,
            "logprobs": None,
            "finish_reason": end,
            "stop_reason": None,
        }
        if self._ask.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._ask.chat else "text_completion"
        usage = {**self._usage(written), "prompt_tokens_details": None}
        return {**self._head, "object": kind, "choices": [choice], **self._tail, "usage": usage}

    def _choice(self, text: str, end: str | None) -> JsonValue:
        said: dict[str, JsonValue] = {"delta": {"content": text}} if self._ask.chat else {"text": text}
        return {"index": 0, **said, "logprobs": None, "finish_reason": end, "stop_reason": None}

    def _event(self, choices: list[JsonValue], written: int) -> bytes:
        chunk = self._chunk(choices)
        if self._ask.continuous_usage:
            chunk["usage"] = self._usage(written)
        return event(chunk)

    def _chunk(self, choices: list[JsonValue]) -> dict[str, JsonValue]:
        return {**self._head, "object": self._chunk_kind, "choices": choices}

    def _usage(self, written: int) -> dict[str, JsonValue]:
        prompt = self._ask.prompt_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + written, "completion_tokens": written}


def busy() -> Refusal:
    """Admission control lets nothing more in."""
    return Refusal(
        503,
        "The engine is currently busy and cannot accept new requests. Please try again later or on a "
        "different instance.",
        "Service Unavailable",
        param=None,
    )


def engine_died() -> Refusal:
    """The engine died while it held the request."""
    return Refusal(
        500,
        "EngineCore encountered an issue. See stack trace (above) for the root cause. (simulated)",
        "InternalServerError",
        param=None,
    )
