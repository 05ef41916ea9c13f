"""Time as the tested processes have it, without what a busy or frozen machine keeps from them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

_EVERY_S = 0.01
_USUAL_S = 0.005
"""So late a thread of Python may be anyway."""
_LOOK_S = 0.05


class Stopwatch:
    """Bounds what takes too long by our own doing; from entering to leaving the block.

    Left out are the times by which a thread of ours that wakes up again and again comes too late, and those
    in which one of the processes ``pids`` was ready to run while others had the processors (Linux tells).
    Both are next to nothing on an idle machine.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._late_s = 0.0
        self._woke = time.monotonic()
        self._queued: dict[int, float] = {}
        self._started = time.monotonic()
        self._before_s = 0.0
        self._first = {pid: _queued_s(pid) for pid in self._pids}

    def __enter__(self) -> Self:
        self._woke = time.monotonic()
        self._thread.start()
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def restart(self) -> None:
        """Count from now."""
        self._look()
        self._before_s = self._all_away_s()
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, less ``away_s``."""
        passed_s = time.monotonic() - self._started
        return passed_s - self.away_s

    @property
    def away_s(self) -> float:
        """Seconds since the start that are left out; what several processes waited for adds up."""
        self._look()
        return self._all_away_s() - self._before_s

    def _all_away_s(self) -> float:
        # The thread itself may not have come to it yet.
        return self._late_s + _late_s(self._woke) + sum(self._queued.values())

    def _look(self) -> None:
        for pid in self._pids:
            # Of one that has ended the last figure stays.
            now, first = _queued_s(pid), self._first[pid]
            waits = [waited - first.get(thread, 0.0) for thread, waited in now.items()]
            self._queued[pid] = max([self._queued.get(pid, 0.0), *waits])

    def _watch(self) -> None:
        looked = self._woke = time.monotonic()
        while not self._over.wait(_EVERY_S):
            self._late_s += _late_s(self._woke)
            self._woke = time.monotonic()
            if self._woke - looked > _LOOK_S:
                self._look()
                looked = self._woke = time.monotonic()


def _late_s(woke: float) -> float:
    """By how much a thread that woke up then should have come again."""
    return max(0.0, time.monotonic() - woke - _EVERY_S - _USUAL_S)


def _queued_s(pid: int) -> dict[str, float]:
    """How long each thread of a process has been ready without a processor, as far as that is told."""
    found = {}
    for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            found[stat.parent.name] = int(stat.read_text().split()[1]) / 1e9
        except OSError:
            continue  # the thread has ended meanwhile
    return found
