"""Server-sent events out of a byte stream, fed as it arrives (HTML standard, section 9.2.6)."""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
_LF = 0x0A


class SseEvent(NamedTuple):
    """One event; ``name`` is ``message`` unless the stream names it otherwise."""

    data: str
    name: str = "message"


class SseParser:
    """Turns bytes into events whatever way the bytes were cut; comments (``:``) are skipped.

    Lines are split before they are decoded, so a cut inside a UTF-8 character does no harm. llama.cpp up to
    September 2025 (its pull request 16109) sent errors in a field ``error:`` instead of ``data:``; such a
    field becomes an event of that name.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._after_cr = False
        self._first_line = True
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._name = b""

    @property
    def pending_bytes(self) -> int:
        """Bytes held for an event that is not complete yet."""
        return len(self._tail) + self._data_bytes

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Take the next bytes; answer the events that they complete."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[0] == _LF:
                chunk = chunk[1:]
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        lines = (self._tail + chunk).splitlines(keepends=True)
        self._tail = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        return self._take(lines)

    def close(self) -> list[SseEvent]:
        """Take the end of the stream: some servers leave out the blank line after their last event."""
        lines = [self._tail, b""] if self._tail else [b""]
        self._tail = b""
        return self._take(lines)

    def _take(self, lines: list[bytes]) -> list[SseEvent]:
        events: list[SseEvent] = []
        for raw in lines:
            line = raw.rstrip(b"\r\n")
            if self._first_line:
                line = line.removeprefix(_BOM)
                self._first_line = False
            if line:
                self._field(line)
            elif self._data:
                events.append(self._dispatch())
            else:
                self._name = b""
        return events

    def _field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"error":
            self._name = b"error"
            field = b"data"
        if field == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
        elif field == b"event":
            self._name = value

    def _dispatch(self) -> SseEvent:
        data = b"\n".join(self._data).decode(errors="replace")
        name = self._name.decode(errors="replace") or "message"
        self._data, self._data_bytes, self._name = [], 0, b""
        return SseEvent(data, name)
