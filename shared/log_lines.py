"""What a line of the log says, and how: text (logfmt behind the time) or a JSON object."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json

from shared.masking import masked_for_log, may_hold_secrets

if TYPE_CHECKING:
    from loguru import Record, RecordException

EVENT = "event"
"""The field by which a canonical line names itself."""
_OWN = frozenset({"service", EVENT, "message"})
_BARE = re.compile(r"[!#-<>-~]+")
"""What a value may consist of without quotes: printable ASCII but for the space, ``"`` and ``=``."""
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_QUOTE = json.JSONEncoder(ensure_ascii=False).encode
_COLOURS = {"DEBUG": "\033[34m", "INFO": "\033[1m", "WARNING": "\033[1;33m", "ERROR": "\033[1;31m"}
_TIME_OF_DAY = slice(11, 23)
_GREEN, _PLAIN = "\033[32m", "\033[0m"

Value = str | int | float


@dataclass(slots=True)  # a frozen one takes three times as long to make, and every request makes two
class Entry:
    """One line before it has a form. ``at``: ISO 8601 with ms and zone; ``event``: of a canonical line, whose
    ``message`` may be None. The lines are made of one ``without_secrets``.
    """

    at: str
    level: str
    service: str
    event: str | None
    message: str | None
    fields: Mapping[str, Any]
    exception: RecordException | None = None


def entry_of(record: Record) -> Entry:
    """What a record of loguru says."""
    extra: dict[str, Any] = record["extra"]
    event, message = extra.get(EVENT), record["message"]
    return Entry(
        at=record["time"].isoformat(timespec="milliseconds"),
        level=record["level"].name,
        service=extra["service"],
        event=event,
        message=None if message == event else message,
        fields={name: value for name, value in extra.items() if name not in _OWN},
        exception=record["exception"],
    )


def without_secrets(entry: Entry) -> Entry:
    """The same with keys and passwords hidden, but for the traceback: that is masked as it is written.

    A value that is neither text nor a number becomes text, one that is None is left out.
    """
    message, fields, texts = entry.message, {}, [entry.message or ""]
    for name, value in entry.fields.items():
        kind = type(value)
        if kind is str:
            fields[name] = value
            texts.append(value)
        elif kind is int or kind is float or isinstance(value, int):
            fields[name] = value
        elif isinstance(value, float):
            fields[name] = float(value)  # of numpy, say
        elif value is not None:
            text = fields[name] = str(value)
            texts.append(text)
    if may_hold_secrets("\n".join(texts)):
        # Each by itself and before it is quoted: the quotes of a line in those of a text would hide its keys.
        message = message and masked_for_log(message)
        for name, plain in fields.items():
            fields[name] = masked_for_log(plain) if isinstance(plain, str) else plain
    return Entry(entry.at, entry.level, entry.service, entry.event, message, fields, entry.exception)


def text_line(entry: Entry) -> str:
    """``<time> <level> <service> <message or event=...> key=value ...``, its traceback indented below."""
    return f"{entry.at} {entry.level:<7} {entry.service} {_said(entry)}"


def terminal_line(entry: Entry) -> str:
    """The same in colours, with the time of day alone."""
    colour = _COLOURS.get(entry.level, "")
    at = entry.at[_TIME_OF_DAY]
    return f"{_GREEN}{at}{_PLAIN} {colour}{entry.level:<7}{_PLAIN} {entry.service} {_said(entry)}"


def json_line(entry: Entry) -> str:
    """One object: ``ts``, ``level``, ``service``, ``event`` and ``message`` (or one of them), the fields."""
    line: dict[str, Value] = {"ts": entry.at, "level": entry.level, "service": entry.service}
    if entry.event is not None:
        line[EVENT] = entry.event
    if entry.message is not None:
        line["message"] = entry.message
    for name, value in entry.fields.items():
        line[name] = _json_number(value) if type(value) is float else value
    if entry.exception is not None:
        line["exception"] = "\n".join(_traceback(entry.exception))
    try:
        written = to_json(line)
    except PydanticSerializationError:  # half a surrogate pair
        return _ENCODE(line)
    # Whoever collects stderr may read it in any encoding.
    return written.decode() if written.isascii() else _ENCODE(line)


def said_in(line: str) -> str:
    """The message of a line that ``json_line`` made; any other line as it is."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    message = found.get("message") if isinstance(found, dict) else None
    return message if isinstance(message, str) else line


def _said(entry: Entry) -> str:
    parts = [f"event={entry.event}"] if entry.event is not None else [_one_line(entry.message or "")]
    for name, value in entry.fields.items():
        parts.append(f"{name}={_text_value(value)}")
    if entry.event is not None and entry.message is not None:
        parts.append(f"message={_text_value(entry.message)}")
    said = " ".join(parts)
    if entry.exception is None:
        return said
    return "\n  | ".join([said, *map(_one_line, _traceback(entry.exception))])


def _text_value(value: Value) -> str:
    text = value if type(value) is str else _number(value) if type(value) is float else str(value)
    return text if _BARE.fullmatch(text) else _one_line(_QUOTE(text))


def _json_number(value: float) -> Value:
    return round(value, 3) if math.isfinite(value) else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _one_line(text: str) -> str:
    """A text that can neither begin a line of its own nor steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _traceback(found: RecordException) -> Iterator[str]:
    for part in traceback.format_exception(found.type, found.value, found.traceback):
        yield from (masked_for_log(line) for line in part.rstrip("\n").split("\n"))
