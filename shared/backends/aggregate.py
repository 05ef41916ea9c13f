"""Builds the answer that a client without streaming expects out of the chunks of a stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue
from pydantic_core import from_json

from shared.backends.errors import Broken, from_error_object
from shared.backends.sse import SseEvent

DONE = "[DONE]"
_CHAT_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_HEAD = ("id", "created", "model", "system_fingerprint")
_TAIL = ("usage", "timings")

Object = Mapping[str, JsonValue]


@dataclass(slots=True)
class _ToolCall:
    id: JsonValue = None
    type: JsonValue = "function"
    name: str = ""
    arguments: str = ""

    def response(self) -> dict[str, JsonValue]:
        function: dict[str, JsonValue] = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": self.type, "function": function}


@dataclass(slots=True)
class _Choice:
    finish_reason: str | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: dict[int, _ToolCall] = field(default_factory=dict)
    logprobs: dict[str, JsonValue] | None = None

    def text(self, name: str) -> str:
        return "".join(self.texts.get(name, ()))


class Aggregate:
    """The answer so far; ``limit`` bounds the bytes of generated text (and log probabilities) kept.

    Once it is passed, ``truncated`` is set, further text is dropped and the finish reason is ``length``.
    """

    def __init__(self, *, chat: bool, limit: int) -> None:
        self.chat = chat
        self.truncated = False
        self.done = False
        self._room = limit
        self._head: dict[str, JsonValue] = {}
        self._tail: dict[str, JsonValue] = {}
        self._choices: dict[int, _Choice] = {}

    def add(self, event: SseEvent) -> bool:
        """Take one event; True if it carried generated tokens.

        Raises the ``BackendError`` that an error object in the stream stands for, and ``Broken`` for what is
        no chunk at all.
        """
        said = event.data.strip()
        if not said or said == DONE:
            self.done |= bool(said)
            return False
        chunk = _parse(event)
        if chunk is None:
            return False
        for name in _HEAD:
            if name in chunk:
                self._head.setdefault(name, chunk[name])
        for name in _TAIL:
            if chunk.get(name) is not None:
                self._tail[name] = chunk[name]
        carried = False
        for item in _objects(chunk.get("choices")):
            carried |= self._add_choice(item, len(event.data))
        return carried

    @property
    def finished(self) -> bool:
        """Whether every choice has said why it ended (the stream's end may then come without ``[DONE]``)."""
        return bool(self._choices) and all(choice.finish_reason for choice in self._choices.values())

    @property
    def empty(self) -> bool:
        return not self._choices

    @property
    def text(self) -> str:
        choice = self._choices.get(0)
        return choice.text("content" if self.chat else "text") if choice else ""

    @property
    def finish_reason(self) -> str | None:
        if self.truncated:
            return "length"
        choice = self._choices.get(0)
        return choice.finish_reason if choice else None

    @property
    def usage(self) -> dict[str, JsonValue] | None:
        usage = self._tail.get("usage")
        return usage if isinstance(usage, dict) else None

    @property
    def timings(self) -> Object:
        """llama.cpp's own measurements of this request, empty for other servers."""
        return _object(self._tail.get("timings"))

    def response(self) -> dict[str, JsonValue]:
        """The answer as OpenAI's object: ``chat.completion`` or ``text_completion``."""
        choices: list[JsonValue] = [self._response(index) for index in sorted(self._choices)]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, **self._tail}

    def _response(self, index: int) -> dict[str, JsonValue]:
        choice = self._choices[index]
        reason: JsonValue = "length" if self.truncated else choice.finish_reason
        answer: dict[str, JsonValue] = {"index": index, "finish_reason": reason}
        if not self.chat:
            return answer | {"text": choice.text("text"), "logprobs": choice.logprobs}
        calls: list[JsonValue] = [
            choice.tool_calls[number].response() for number in sorted(choice.tool_calls)
        ]
        message: dict[str, JsonValue] = {"role": "assistant"}
        message["content"] = choice.text("content") if choice.texts.get("content") or not calls else None
        message |= {name: choice.text(name) for name in _CHAT_TEXTS[1:] if choice.texts.get(name)}
        if calls:
            message["tool_calls"] = calls
        answer["message"] = message
        return answer | {"logprobs": choice.logprobs} if choice.logprobs else answer

    def _add_choice(self, item: Object, size: int) -> bool:
        index = item.get("index")
        number = index if isinstance(index, int) else 0
        choice = self._choices.get(number)
        if choice is None:
            choice = self._choices[number] = _Choice()
        reason = item.get("finish_reason")
        if isinstance(reason, str) and reason:
            choice.finish_reason = reason
        if item.get("logprobs"):
            self._add_logprobs(choice, _object(item["logprobs"]), size)
        if not self.chat:
            return self._add_text(choice, "text", item.get("text"))
        delta = _object(item.get("delta"))
        carried = False
        for name in _CHAT_TEXTS:
            if name in delta:
                carried |= self._add_text(choice, name, delta[name])
        if "tool_calls" in delta:
            for call in _objects(delta["tool_calls"]):
                carried |= self._add_tool_call(choice, call)
        return carried

    def _add_text(self, choice: _Choice, name: str, piece: JsonValue) -> bool:
        if not isinstance(piece, str) or not piece:
            return False
        choice.texts.setdefault(name, []).append(self._fit(piece))
        return True

    def _add_tool_call(self, choice: _Choice, item: Object) -> bool:
        index = item.get("index")
        call = choice.tool_calls.setdefault(index if isinstance(index, int) else 0, _ToolCall())
        call.id = item.get("id") or call.id
        call.type = item.get("type") or call.type
        function = _object(item.get("function"))
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str):
            call.name += self._fit(name)
        if isinstance(arguments, str):
            call.arguments += self._fit(arguments)
        return True

    def _add_logprobs(self, choice: _Choice, logprobs: Object, size: int) -> None:
        if not logprobs or not self._charge(size):
            return
        kept = choice.logprobs = choice.logprobs or {}
        for name, values in logprobs.items():
            held = kept.setdefault(name, [] if isinstance(values, list) else values)
            if isinstance(held, list) and isinstance(values, list):
                held.extend(values)

    def _fit(self, piece: str) -> str:
        if piece.isascii() and len(piece) <= self._room:
            self._room -= len(piece)
            return piece
        raw = piece.encode(errors="replace")  # a lone surrogate could not be stored as UTF-8 later
        room = max(0, self._room)
        self._charge(len(raw))
        return raw[:room].decode(errors="ignore")

    def _charge(self, size: int) -> bool:
        self._room -= size
        if self._room < 0:
            self.truncated = True
        return self._room >= 0


def _parse(event: SseEvent) -> Object | None:
    chunk = _json(event.data)
    if chunk is None:
        return None  # llama.cpp begins the stream of a list of prompts so
    if not isinstance(chunk, dict):
        raise Broken(f"an event of the stream is no object: {event.data}")
    if event.name == "error":
        raise from_error_object(chunk.get("error", chunk))
    if chunk.get("error"):
        raise from_error_object(chunk["error"])
    return chunk


def _json(text: str) -> JsonValue:
    try:
        found: JsonValue = from_json(text)
    except ValueError:
        # Half of a surrogate pair, at least, is JSON to Python: a backend may cut an emoji in two.
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # the second for one that nests too deep
            raise Broken(f"an event of the stream is not JSON: {text}") from None
    return found


def _object(value: JsonValue) -> Object:
    return value if isinstance(value, dict) else {}


def _objects(value: JsonValue) -> list[dict[str, JsonValue]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
