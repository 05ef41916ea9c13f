"""Blocking calls that may hang for ever, in threads that neither the event loop nor the exit waits for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def call_in_daemon_thread(call: Callable[[], _T], name: str) -> asyncio.Future[_T]:
    """Start the call; the future gets its outcome. Not ``asyncio.to_thread``, whose pool joins at exit."""
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    waiting = asyncio.wrap_future(outcome)
    threading.Thread(target=work, name=name, daemon=True).start()
    return waiting
