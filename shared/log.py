"""Logging: loguru to stderr and to ``<dir>/<service>.log``, stdlib records included, and canonical lines."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from loguru import logger

from shared.config import LogSettings
from shared.log_lines import Entry, json_line, terminal_line, text_line
from shared.log_sink import BoundedFile, Lines, Render

if TYPE_CHECKING:
    from loguru import Record

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Field = str | int | float | None
REQUEST: ContextVar[str | None] = ContextVar("request", default=None)
"""The id of the request that is worked on; it is in every line that is no canonical one."""
_LEVELS: tuple[str, ...] = get_args(Level)
_EVENT_AND_MESSAGE = "{message}"


class _Canonical:
    """The short way of canonical lines: loguru's own to the same sink costs more than the line itself."""

    def __init__(self, service: str, least: str, lines: Lines) -> None:
        self._service = service
        self._levels = frozenset(_LEVELS[_LEVELS.index(least) :])
        self._lines = lines
        self._stamp = (-1, "", "")

    def shows(self, level: Level) -> bool:
        return level in self._levels

    def put(self, name: str, level: Level, message: str | None, fields: Mapping[str, Field]) -> None:
        if level in self._levels:
            self._lines.put(Entry(self._now(), level, self._service, name, message, fields))

    def _now(self) -> str:
        now = time.time()
        second, date, zone = self._stamp
        if second != int(now):
            second = int(now)
            at = datetime.fromtimestamp(second).astimezone().isoformat()
            date, zone = at[:19], at[19:]
            self._stamp = (second, date, zone)
        return f"{date}.{int((now - second) * 1000):03}{zone}"


_canonical: _Canonical | None = None


def _add_request(record: Record) -> None:
    request_id = REQUEST.get()
    if request_id is not None:
        record["extra"].setdefault("request", request_id)


class _Intercept(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.opt(exception=record.exc_info).log(
            _level_of(record.levelno), "{} {}", record.name, record.getMessage()
        )


def _level_of(number: int) -> Level:
    """A level of the standard library, which has CRITICAL and lets anybody add more, as one of ours."""
    if number >= logging.ERROR:
        return "ERROR"
    if number >= logging.WARNING:
        return "WARNING"
    return "INFO" if number >= logging.INFO else "DEBUG"


def configure(service: str, settings: LogSettings) -> None:
    """Send this process's log to stderr and to its file (10 MB, one predecessor kept).

    May be called again, with other settings.
    """
    logger.remove()
    logger.configure(extra={"service": service}, patcher=_add_request)
    path = Path(settings.dir) / f"{service}.log"
    file, refused = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = BoundedFile(path)
    except OSError as error:
        refused = error.strerror
    lines = Lines(sys.stderr, _shown(settings), text_line, file)
    # The function makes the line, loguru's own formatting is not wanted: it costs as much again.
    logger.add(
        lines,
        level=settings.level,
        format=lambda _: "",
        backtrace=False,
        diagnose=False,
        catch=False,  # or it writes the record as it is, keys and all, next to our lines
    )
    global _canonical
    _canonical = _Canonical(service, settings.level, lines)
    if refused is not None:
        logger.warning("log.dir {}: {}: logging to stderr only", path.parent, refused)
    logging.basicConfig(handlers=[_Intercept()], level=logging.WARNING, force=True)


def shows(level: Level) -> bool:
    """Whether a canonical line of this level is written: it need not be put together otherwise."""
    return _canonical is None or _canonical.shows(level)


def event(name: str, /, level: Level = "INFO", message: str | None = None, **fields: Field) -> None:
    """One canonical line: ``event=<name>`` and its fields; those that are None are left out.

    ``message`` says the same for people. Durations are in ms and say so in their names. Where ``configure``
    was not called, it is a record of loguru like any other.
    """
    if _canonical is not None:
        _canonical.put(name, level, message, fields)
    elif message is None:
        logger.log(level, name, event=name, **fields)
    else:
        logger.log(level, _EVENT_AND_MESSAGE, event=name, message=message, **fields)


def chosen_format(settings: LogSettings) -> Literal["text", "json"]:
    """``log.format``, where ``auto`` is text on a terminal and JSON elsewhere."""
    if settings.format != "auto":
        return settings.format
    return "text" if sys.stderr.isatty() else "json"


def _shown(settings: LogSettings) -> Render:
    if chosen_format(settings) == "json":
        return json_line
    return terminal_line if sys.stderr.isatty() and "NO_COLOR" not in os.environ else text_line
