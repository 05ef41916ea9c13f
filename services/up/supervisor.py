"""Keeps the child processes running, and ends them in order: those that drain, the others, Redis last."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from loguru import logger

from services.up.ports import CannotStart
from shared.log_lines import said_in
from shared.process import ChildProcess, describe_exit
from shared.store.server import EmbeddedRedis

TICK_S = 0.1
_OTHERS_GRACE_S = 5.0
_REDIS_GRACE_S = 10.0
_LOG_BYTES = 10_000_000
"""Like the services' own log files, what a child prints is kept to 10 MB and one predecessor."""


@dataclass(slots=True)
class RestartPolicy:
    """How long to wait before a dead child is started again, and when to give up."""

    base_s: float = 0.5
    cap_s: float = 5.0
    deaths: int = 5
    window_s: float = 30.0
    _times: deque[float] = field(default_factory=deque)

    def died(self, now: float) -> float | None:
        """Seconds to wait, doubling with each death in the window; ``None`` at the last one allowed in it."""
        self._times.append(now)
        while now - self._times[0] > self.window_s:
            self._times.popleft()
        if len(self._times) >= self.deaths:
            return None
        return min(self.cap_s, self.base_s * 2.0 ** (len(self._times) - 1))


@dataclass(slots=True)
class Child:
    """A supervised process; one that ``drains`` is stopped first and given time to finish its work."""

    process: ChildProcess
    drains: bool = False
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    restart_at: float | None = None


class Supervisor:
    """Starts Redis and the children, watches them until SIGINT, SIGTERM or SIGHUP, and stops them."""

    def __init__(
        self,
        redis: EmbeddedRedis | None,
        children: Sequence[Child],
        *,
        missing: Callable[[], str | None],
        drain_s: float,
        ready_timeout_s: float = 30.0,
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        """``missing`` says what isn't ready yet, ``None`` once all is; ``drain_s`` is the router's.

        ``beside`` is called every ``TICK_S`` while all runs.
        """
        self._redis = redis
        self._children = list(children)
        self._watched = [*([Child(redis)] if redis is not None else []), *self._children]
        self._missing = missing
        self._drain_s = drain_s
        self._ready_timeout_s = ready_timeout_s
        self._beside = beside
        self._stopping = False
        self._at_once = False

    def run(self, announce: Callable[[], None]) -> None:
        """Return after an orderly stop; ``announce`` is called once everything is ready.

        Raises ``CannotStart`` (not ready in time, or a child that keeps dying) or ``StoreUnavailable``
        (the embedded Redis can't start), both after everything has been stopped.
        """
        self._take_signals()
        try:
            self._start_redis()
            for child in self._children:
                if not self._stopping:
                    _launch(child.process)
            self._await_ready()
            if not self._stopping:
                announce()
            while not self._stopping:
                self._tend()
                self._beside()
                time.sleep(TICK_S)
        finally:
            self._stop()

    def _take_signals(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        # Ignored where somebody said nohup: then the terminal's end isn't ours.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Only Ctrl-C can be impatient: a process group's SIGTERM arrives twice, once more through make.
        self._at_once = self._stopping and number == signal.SIGINT
        self._stopping = True

    def _start_redis(self) -> None:
        if self._redis is None:
            return
        self._redis.launch()
        deadline = time.monotonic() + self._ready_timeout_s
        while not self._stopping and not self._redis.ready():
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"redis does not answer after {self._ready_timeout_s:g} s; log: {self._redis.log_path}"
                )
            time.sleep(TICK_S / 5)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self._ready_timeout_s
        while not self._stopping and (missing := self._missing()) is not None:
            if time.monotonic() > deadline:
                raise CannotStart(f"not ready after {self._ready_timeout_s:g} s: {missing}")
            self._tend()
            time.sleep(TICK_S)

    def _tend(self) -> None:
        now = time.monotonic()
        for child in self._watched:
            child.process.bound_log(_LOG_BYTES)
            if child.restart_at is not None:
                if now >= child.restart_at:
                    child.restart_at = None
                    _launch(child.process)
            elif (status := child.process.poll()) is not None:
                self._bury(child, status, now)

    def _bury(self, child: Child, status: int, now: float) -> None:
        process = child.process
        last = " ".join(map(said_in, process.last_lines())) or "no output"
        line = f"{process.name} died ({describe_exit(status)}): {last}; log: {process.log_path}"
        delay_s = child.policy.died(now)
        if delay_s is None:
            raise CannotStart(
                f"{line}; died {child.policy.deaths} times in {child.policy.window_s:g} s: all is stopped"
            )
        logger.warning("{}; starting it again in {:g} s", line, delay_s)
        child.restart_at = now + delay_s

    def _stop(self) -> None:
        if self._stopping:
            logger.info("stopping; a second Ctrl-C ends everything at once")
        self._stopping = True
        draining = [child.process for child in self._children if child.drains]
        others = [child.process for child in self._children if not child.drains]
        self._stop_together(draining, self._drain_s + _OTHERS_GRACE_S)
        self._stop_together(others, _OTHERS_GRACE_S)
        self._stop_together([self._redis] if self._redis is not None else [], _REDIS_GRACE_S)

    def _stop_together(self, processes: Sequence[ChildProcess], grace_s: float) -> None:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + grace_s
        while any(process.pid is not None for process in processes):
            if self._at_once or time.monotonic() > deadline:
                break
            time.sleep(TICK_S / 5)
        for process in processes:
            if process.pid is not None:
                logger.warning(
                    "{} is killed: it had not stopped {}",
                    process.name,
                    "yet" if self._at_once else f"after {grace_s:g} s",
                )
                process.kill()


def _launch(process: ChildProcess) -> None:
    try:
        process.launch()
    except OSError as error:
        where = error.filename or process.log_path
        raise CannotStart(f"{process.name} cannot be started: {where}: {error.strerror}") from None
