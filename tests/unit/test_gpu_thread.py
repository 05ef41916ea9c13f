"""A blocking call may outlast the event loop that started it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shared.gpu.thread import call_in_daemon_thread, ended


def test_a_call_that_outlives_its_event_loop_is_waited_for_by_the_next_one() -> None:
    release = threading.Event()
    call = call_in_daemon_thread(lambda: release.wait(10), "slow")

    assert asyncio.run(ended(call, 0.01)) is False
    release.set()

    assert asyncio.run(ended(call, 5)) is True
    assert call.result() is True


def test_an_error_of_the_call_is_its_outcome() -> None:
    call = call_in_daemon_thread(lambda: 1 // 0, "wrong")

    assert asyncio.run(ended(call, 5)) is True
    with pytest.raises(ZeroDivisionError):
        call.result()
