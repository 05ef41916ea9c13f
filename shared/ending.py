"""Why a process ends: what is no error of ours with its traceback, last the line for a supervisor."""

from __future__ import annotations

from traceback import extract_tb

from loguru import logger

from shared.errors import OrchestratorError


def log_end(service: str, error: BaseException) -> None:
    """Log the error that ends a service; of a group the first one."""
    first = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, OrchestratorError):
        logger.error("{} ends: {}", service, first)
        return
    logger.opt(exception=first).error("{} fails", service)
    frames = extract_tb(first.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    logger.error("{} ends: {}: {}{}", service, type(first).__name__, first, place)
