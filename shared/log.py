"""Logging: loguru to stderr and to ``<dir>/<service>.log``, stdlib records included, and canonical lines."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Literal

from loguru import logger

from shared.config import LogSettings
from shared.log_lines import json_line, terminal_line, text_line
from shared.log_sink import BoundedFile, Lines, Render

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Field = str | int | float | None
_EVENT_AND_MESSAGE = "{message}"


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
    logger.configure(extra={"service": service})
    path = Path(settings.dir) / f"{service}.log"
    file, refused = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = BoundedFile(path)
    except OSError as error:
        refused = error.strerror
    # The function makes the line, loguru's own formatting is not wanted: it costs as much again.
    logger.add(
        Lines(sys.stderr, _shown(settings), text_line, file),
        level=settings.level,
        format=lambda _: "",
        backtrace=False,
        diagnose=False,
        catch=False,  # or it writes the record as it is, keys and all, next to our lines
    )
    if refused is not None:
        logger.warning("log.dir {}: {}: logging to stderr only", path.parent, refused)
    logging.basicConfig(handlers=[_Intercept()], level=logging.WARNING, force=True)


def event(name: str, /, level: Level = "INFO", message: str | None = None, **fields: Field) -> None:
    """One canonical line: ``event=<name>`` and its fields; those that are None are left out.

    ``message`` says the same for people. Durations are in ms and say so in their names.
    """
    if message is None:
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
