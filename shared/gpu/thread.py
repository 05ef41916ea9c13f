"""Blocking calls that may hang for ever, in threads that neither the event loop nor the exit waits for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def call_in_daemon_thread(call: Callable[[], _T], name: str) -> concurrent.futures.Future[_T]:
    """Start the call; the future gets its outcome. Not ``asyncio.to_thread``, whose pool joins at exit.

    The future belongs to no event loop, so that a call may outlast the loop that started it; wait for it
    with ``ended``.
    """
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def work() -> None:
        outcome.set_running_or_notify_cancel()
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return outcome


async def ended(call: concurrent.futures.Future[_T], within_s: float) -> bool:
    """Wait up to ``within_s`` seconds for the call; whether it has ended."""
    waiting = asyncio.wrap_future(call)
    await asyncio.wait({waiting}, timeout=within_s)
    if waiting.done() and not waiting.cancelled():
        waiting.exception()  # looked at here: whoever wants it asks the call itself
    return call.done()
