"""The stopwatch of the tests: it counts what our processes do, not what a machine keeps from them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

from tests.kit.stack import ROOT
from tests.kit.stopwatch import Stopwatch

_MEASURE = """
from tests.kit.stopwatch import Stopwatch
with Stopwatch() as watch:
    print("begun", flush=True)
    input()
    print(watch.elapsed_s, watch.elapsed_s + watch.away_s)
"""
_SPIN = (
    "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(flush=True)\nwhile True: pass"
)
_LONG_S = 1.0


def _long() -> None:
    """Let a second go by in which this thread wants nothing."""
    threading.Event().wait(_LONG_S)


def test_time_in_which_nobody_wants_to_run_is_counted() -> None:
    with Stopwatch() as watch:
        for _ in range(20):  # in pieces: the machine may really stand still in one or two
            threading.Event().wait(_LONG_S / 20)
        counted_s = watch.elapsed_s

    assert counted_s > _LONG_S / 4


def test_a_standstill_of_the_process_is_not_counted() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _MEASURE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        _long()
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("go on\n")

    counted_s, passed_s = map(float, said.split())
    assert passed_s > _LONG_S
    assert counted_s < passed_s - _LONG_S / 2


def test_a_wait_for_a_processor_that_others_have_is_not_counted() -> None:
    command = [sys.executable, "-c", _SPIN]
    spinning = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in spinning:
            assert process.stdout is not None
            assert process.stdout.readline()
        with Stopwatch(spinning[0].pid) as watch:
            _long()
            counted_s, passed_s = watch.elapsed_s, watch.elapsed_s + watch.away_s
    finally:
        for process in spinning:
            process.kill()
            process.communicate()

    assert counted_s < passed_s - _LONG_S / 4, "two on one processor: each waits half of the time"
