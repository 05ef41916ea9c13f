"""A backend's answer on its way to the client: cut at its events, renamed, and looked at where it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pydantic import JsonValue

from services.api.gateway.dialects import Dialect, quoted
from shared.backends.completion import ABORTED
from shared.backends.errors import BackendError, Broken, Interrupted, from_error_object
from shared.backends.sse import SseParser

_HELD_BYTES = 64 * 1024
"""An event longer than this goes on in pieces."""
_TAIL_BYTES = 8 * 1024
_MODEL_KEY = rb'"model": ?'
# A quote inside a JSON text is escaped, so none of these can match what a model or a user wrote.
_ERROR = re.compile(rb'(?:\A|\n)(?=data: ?\{"error"|event: ?error|error:)')
_ABORTED = re.compile(rb'"finish_reason":\s?"' + ABORTED.encode())
_FINISHED = re.compile(rb'"finish_reason":\s?"\w')
_DONE = re.compile(rb"(?:\A|\n)data: ?\[DONE\]")
_DECODER = json.JSONDecoder()


class Events:
    """Holds back the beginning of an event until the rest is there, so that an error can follow cleanly."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """The complete events so far (or a piece of one that is too long to be held)."""
        data = self._held + chunk if self._held else chunk
        if data.endswith(b"\n\n"):
            self._held = b""
            return data
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
        if end < 4 and len(data) > _HELD_BYTES:
            end = len(data)
        elif end < 4:
            end = 0
        self._held = data[end:]
        return data[:end]

    def close(self) -> bytes:
        """What is left at the end of the stream."""
        data, self._held = self._held, b""
        return data


class Renamer:
    """Replaces the backend's name for a model by the public one, wherever the bytes were cut."""

    def __init__(self, upstream: str, public: str) -> None:
        names = b"|".join(re.escape(name) for name in sorted(quoted(upstream)))
        self._pattern = re.compile(rb"(?<!\\)(" + _MODEL_KEY + rb")(?:" + names + rb")")
        self._new = rb"\g<1>" + json.dumps(public).encode().replace(b"\\", rb"\\")
        whole = [b'"model":' + space + name for space in (b"", b" ") for name in quoted(upstream)]
        self._whole = tuple(whole)
        self._longest = max(map(len, whole))
        self._before = b""
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What can go on by now."""
        data = self._before + self._held + chunk
        start = len(self._before)
        for match in self._pattern.finditer(data):
            start = match.end()
        keep = self._begun(data, start)
        out = self._pattern.sub(self._new, data[: len(data) - keep])[len(self._before) :]
        self._held = data[len(data) - keep :]
        if len(data) > keep:
            self._before = data[len(data) - keep - 1 : len(data) - keep]
        return out

    def close(self) -> bytes:
        data, self._held = self._held, b""
        return data

    def _begun(self, data: bytes, start: int) -> int:
        """How many bytes at the end, from ``start`` on, may be the beginning of what is to be replaced."""
        start = max(start, len(data) - self._longest + 1)
        while (start := data.find(b'"', start)) >= 0:
            end = data[start:]
            if any(whole.startswith(end) for whole in self._whole):
                return len(end)
            start += 1
        return 0


class Ending:
    """The last of a stream, by which it is told whether it was complete, and what it cost."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._tail = bytearray()
        self._complete = False
        self._failed = False
        self._long = bool(dialect.ends)
        self._at_line_start = True

    @property
    def tail(self) -> bytes:
        return bytes(self._tail)

    def see(self, piece: bytes) -> None:
        """Take the next piece; raises ``Interrupted`` for an answer that the backend gave up.

        vLLM then ends the stream as if nothing had happened.
        """
        if b'"abort"' in piece and _ABORTED.search(piece):
            raise aborted()
        if self._long:
            self._complete = self._complete or self._says(self._dialect.ends, piece)
            self._failed = self._failed or self._says(self._dialect.fails, piece)
            self._at_line_start = piece.endswith(b"\n") if piece else self._at_line_start
        self._tail += piece
        if len(self._tail) > 2 * _TAIL_BYTES:
            del self._tail[:-_TAIL_BYTES]
            self._tail[:1] = b" "  # cut anywhere, it must not look like the beginning of a line

    def told_error(self) -> BackendError | None:
        """The error that the backend told in the stream itself."""
        found = error_in(self.tail)
        if found is None and self._failed:
            found = Broken("the backend said that the response failed")
        return found

    def check(self) -> None:
        """Raises ``Interrupted`` if the stream ended before the answer did."""
        if self._complete or _DONE.search(self._tail):
            return
        if self._dialect.says_finish_reason and _FINISHED.search(self._tail):
            return
        raise Interrupted("backend_interrupted", "the stream ended before the answer did")

    def _says(self, marks: tuple[bytes, ...], piece: bytes) -> bool:
        # Only as a line of its own: inside one, it may be what the model wrote.
        return any(
            (self._at_line_start and piece.startswith(mark)) or b"\n" + mark in piece for mark in marks
        )


def aborted() -> Interrupted:
    return Interrupted("backend_interrupted", "the backend aborted the answer (put to sleep or paused?)")


def was_aborted(body: bytes) -> bool:
    """Whether vLLM broke off the answer that this body (or its end) belongs to."""
    return _ABORTED.search(body) is not None


def is_comment(piece: bytes) -> bool:
    """Whether these events are none: llama.cpp's pings while it still reads the prompt."""
    return piece[:1] == b":" and all(line[:1] in (b":", b"") for line in piece.splitlines())


def error_in(piece: bytes) -> BackendError | None:
    """The error that an event in these bytes tells."""
    match = _ERROR.search(piece)
    if match is None:
        return None
    parser = SseParser()
    for event in (*parser.feed(piece[match.end() :]), *parser.close()):
        try:
            said = json.loads(event.data)
        except (ValueError, RecursionError):
            return Broken(event.data)
        return from_error_object(said.get("error", said) if isinstance(said, dict) else said)
    return Broken("an error without words")


def last_object(tail: bytes, name: str) -> Mapping[str, JsonValue]:
    """The last object under this name in the end of an answer, empty where there is none."""
    text = tail.decode(errors="replace")
    at = text.rfind(f'"{name}":')
    while at >= 0:
        start = at + len(name) + 3
        try:
            found, _ = _DECODER.raw_decode(text[start:].lstrip())
        except (ValueError, RecursionError):
            return {}
        if isinstance(found, dict):
            return found
        at = text.rfind(f'"{name}":', 0, at)
    return {}
