"""One line of the log from one record of loguru: text (logfmt behind the time) or a JSON object."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shared.masking import masked_for_log, may_hold_secrets

if TYPE_CHECKING:
    from loguru import Record

EVENT = "event"
"""The field by which a canonical line names itself."""
_OWN = frozenset({"service", EVENT, "message"})
_BARE = re.compile(r"[!#-<>-~]+")
"""What a value may consist of without quotes: printable ASCII but for the space, ``"`` and ``=``."""
_ENCODE = json.JSONEncoder(separators=(",", ":"), default=str).encode
_QUOTE = json.JSONEncoder(ensure_ascii=False).encode
_COLOURS = {"DEBUG": "\033[34m", "INFO": "\033[1m", "WARNING": "\033[1;33m", "ERROR": "\033[1;31m"}
_GREEN, _PLAIN = "\033[32m", "\033[0m"


def text_line(record: Record) -> str:
    """``<time> <level> <service> <message or event=...> key=value ...``, its traceback indented below."""
    at = record["time"].isoformat(timespec="milliseconds")
    return f"{at} {record['level'].name:<7} {record['extra']['service']} {_said(record)}"


def terminal_line(record: Record) -> str:
    """The same in colours, with the time of day alone."""
    at = record["time"].strftime("%H:%M:%S.%f")[:-3]
    level = record["level"].name
    colour = _COLOURS.get(level, "")
    service = record["extra"]["service"]
    return f"{_GREEN}{at}{_PLAIN} {colour}{level:<7}{_PLAIN} {service} {_said(record)}"


def json_line(record: Record) -> str:
    """One object: ``ts``, ``level``, ``service``, ``event`` and ``message`` (or one of them), the fields."""
    line = _json_fields(record)
    written = _ENCODE(line)
    if not may_hold_secrets(written):
        return written
    return _ENCODE({name: _masked_value(value) for name, value in line.items()})


def said_in(line: str) -> str:
    """The message of a line that ``json_line`` made; any other line as it is."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    message = found.get("message") if isinstance(found, dict) else None
    return message if isinstance(message, str) else line


def _json_fields(record: Record) -> dict[str, Any]:
    extra: dict[str, Any] = record["extra"]
    line: dict[str, Any] = {
        "ts": record["time"].isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "service": extra["service"],
    }
    event, message = extra.get(EVENT), record["message"]
    if event is not None:
        line[EVENT] = event
    if message != event:
        line["message"] = message
    for name, value in extra.items():
        if name not in _OWN and value is not None:
            line[name] = _json_value(value)
    if record["exception"] is not None:
        line["exception"] = "\n".join(_traceback(record))
    return line


def _said(record: Record) -> str:
    said = " ".join(_parts(record["extra"], record["message"]))
    if may_hold_secrets(said):
        fields = {name: _masked_value(value) for name, value in record["extra"].items()}
        said = " ".join(_parts(fields, masked_for_log(record["message"])))
    if record["exception"] is None:
        return said
    return "\n  | ".join([said, *map(_one_line, _traceback(record))])


def _parts(extra: dict[str, Any], message: str) -> list[str]:
    event = extra.get(EVENT)
    parts = [f"event={event}"] if event is not None else [_one_line(message)]
    for name, value in extra.items():
        if name not in _OWN and value is not None:
            parts.append(f"{name}={_text_value(value)}")
    if event is not None and message != event:
        parts.append(f"message={_text_value(message)}")
    return parts


def _masked_value(value: Any) -> Any:
    """Masked before it is quoted: what the quotes of a line do to the quotes of a text hides its keys."""
    text = value if isinstance(value, str) else str(value)
    hidden = masked_for_log(text)
    return value if hidden == text else hidden


def _text_value(value: Any) -> str:
    text = value if isinstance(value, str) else _number(value) if isinstance(value, float) else str(value)
    return text if _BARE.fullmatch(text) else _one_line(_QUOTE(text))


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else str(value)
    return value


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _one_line(text: str) -> str:
    """A text that can neither begin a line of its own nor steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _traceback(record: Record) -> Iterator[str]:
    found = record["exception"]
    if found is not None:
        for part in traceback.format_exception(found.type, found.value, found.traceback):
            yield from (masked_for_log(line) for line in part.rstrip("\n").split("\n"))
