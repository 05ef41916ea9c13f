"""Logging: loguru to the terminal and to ``<dir>/<service>.log``, stdlib records included."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from loguru import logger

from shared.config import LogSettings

_TERMINAL = "<green>{time:HH:mm:ss.SSS}</green> <level>{level: <7}</level> {extra[service]} {message}"
_FILE = "{time:YYYY-MM-DDTHH:mm:ss.SSSZZ} {level: <7} {extra[service]} {message}"


class _Intercept(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger.opt(exception=record.exc_info).log(
            record.levelname if record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR") else "INFO",
            "{} {}",
            record.name,
            record.getMessage(),
        )


def configure(service: str, settings: LogSettings) -> None:
    """Send this process's log to stderr and to its file (10 MB, one predecessor kept)."""
    logger.remove()
    logger.configure(extra={"service": service})
    logger.add(sys.stderr, level=settings.level, format=_TERMINAL, backtrace=False, diagnose=False)
    directory = Path(settings.dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        logger.add(
            directory / f"{service}.log",
            level=settings.level,
            format=_FILE,
            rotation="10 MB",
            retention=1,
            backtrace=False,
            diagnose=False,
        )
    except OSError as error:
        logger.warning("log.dir {}: {}: logging to the terminal only", directory, error.strerror)
    logging.basicConfig(handlers=[_Intercept()], level=logging.WARNING, force=True)
