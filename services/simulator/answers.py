"""What the simulated model says, in llama.cpp's words: chunks of a stream, or one object."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from services.simulator.asks import Ask

DONE = b"data: [DONE]\n\n"
FINGERPRINT = "simulated"
_SENTENCE = (
    "the queue holds a request until some slot of the card is free and then a router sends it on to that "
    "model which reads the prompt token by token into its cache while memory heat power and load of each "
    "node are measured so that no batch is lost when one backend stops or another model takes its place"
)
_WORDS = tuple(_SENTENCE.split())


def pieces(model: str, ask: Ask) -> list[str]:
    """The answer token by token: the same for the same model, seed and prompt, and labelled as simulated."""
    chosen = random.Random(f"{ask.seed}/{model}/{ask.text}").choices(_WORDS, k=ask.max_tokens - 1)
    return [f"[simulated {model}]", *(f" {word}" for word in chosen)]


def event(data: JsonValue) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


@dataclass(slots=True)
class Measured:
    """What llama.cpp tells of a request in ``usage`` and ``timings``."""

    prompt_tokens: int
    output_tokens: int = 0
    prompt_s: float = 0.0
    output_s: float = 0.0

    def usage(self) -> dict[str, JsonValue]:
        return {
            "completion_tokens": self.output_tokens,
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def timings(self) -> dict[str, JsonValue]:
        return {
            "cache_n": 0,
            "prompt_n": self.prompt_tokens,
            "prompt_ms": self.prompt_s * 1000.0,
            "prompt_per_second": self.prompt_tokens / self.prompt_s if self.prompt_s else 0.0,
            "predicted_n": self.output_tokens,
            "predicted_ms": self.output_s * 1000.0,
            "predicted_per_second": self.output_tokens / self.output_s if self.output_s else 0.0,
        }


class Answer:
    """One answer in the making; ``number`` makes its id."""

    def __init__(self, model: str, ask: Ask, number: int) -> None:
        self._ask = ask
        self._head: dict[str, JsonValue] = {
            "created": int(time.time()),
            "id": f"chatcmpl-simulated-{number}",
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        kind = "chat.completion.chunk" if ask.chat else "text_completion"
        rest = json.dumps({**self._head, "object": kind}, separators=(",", ":"))[1:]
        before, after = (
            ('{"finish_reason":null,"index":0,"delta":{"content":', "}}")
            if ask.chat
            else ('{"index":0,"logprobs":null,"finish_reason":null,"text":', "}")
        )
        self._before = f'data: {{"choices":[{before}'
        self._after = f"{after}],{rest}\n\n"

    @property
    def finish_reason(self) -> str:
        return "stop" if self._ask.ends_itself else "length"

    def opening(self) -> bytes:
        """A chat stream begins with the role alone."""
        if not self._ask.chat:
            return b""
        delta: dict[str, JsonValue] = {"role": "assistant", "content": None}
        return event(self._chunk([{"finish_reason": None, "index": 0, "delta": delta}]))

    def tokens(self, some: Sequence[str]) -> bytes:
        """One event for each token."""
        return "".join(f"{self._before}{json.dumps(piece)}{self._after}" for piece in some).encode()

    def closing(self, measured: Measured) -> bytes:
        """The last chunks, with usage and timings where llama.cpp puts them."""
        usage, timings = measured.usage(), measured.timings()
        if not self._ask.chat:
            last: JsonValue = {"text": "", "index": 0, "logprobs": None, "finish_reason": self.finish_reason}
            return event({**self._chunk([last]), "usage": usage, "timings": timings}) + DONE
        end = self._chunk([{"finish_reason": self.finish_reason, "index": 0, "delta": {}}])
        if not self._ask.include_usage:
            return event({**end, "timings": timings}) + DONE
        return event(end) + event({**self._chunk([]), "usage": usage, "timings": timings}) + DONE

    def whole(self, text: str, measured: Measured) -> dict[str, JsonValue]:
        """The answer to a request without ``stream``."""
        choice: dict[str, JsonValue] = {"index": 0, "finish_reason": self.finish_reason}
        if self._ask.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice |= {"text": text, "logprobs": None}
        kind = "chat.completion" if self._ask.chat else "text_completion"
        return {
            "choices": [choice],
            **self._head,
            "object": kind,
            "usage": measured.usage(),
            "timings": measured.timings(),
        }

    def _chunk(self, choices: list[JsonValue]) -> dict[str, JsonValue]:
        kind = "chat.completion.chunk" if self._ask.chat else "text_completion"
        return {"choices": choices, **self._head, "object": kind}
