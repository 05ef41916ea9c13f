"""One child process: own session, output to a file, ended by the kernel if we die, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.tether import tethered

_TAIL_BYTES = 8192


class ChildProcess:
    """A program that can be launched again and again; ``argv[0]`` is looked up on PATH."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log_path: Path,
        *,
        environ: Mapping[str, str] | None = None,
        orphan_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """``orphan_signal`` is what the child gets should this process die without stopping it (Linux)."""
        self.name = name
        self.argv = tuple(argv)
        self.log_path = log_path
        self._environ = None if environ is None else dict(environ)
        self._orphan_signal = orphan_signal
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._popen.pid if self._popen is not None and self.poll() is None else None

    @property
    def launched(self) -> bool:
        """Whether it was launched at all; it may have died since."""
        return self._popen is not None

    def launch(self) -> None:
        """Start the program (it runs from the moment this returns, which says nothing of its being ready)."""
        self._spawn()

    def _spawn(self, inherited: Sequence[int] = ()) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # A tie to a thread that ends early would end the child with it: tests restart servers in threads.
        tie = threading.current_thread() is threading.main_thread()
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                tethered(self.argv, self._orphan_signal) if tie else self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
                pass_fds=inherited,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """The exit status once it has ended (negative: the signal), else ``None``."""
        if self._popen is None:
            return None
        running = self._popen.returncode is None
        status = self._popen.poll()
        if running and status is not None:
            self._signal_group(signal.SIGKILL)
        return status

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); returns at once."""
        if self._popen is not None:
            self._popen.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within this time."""
        if self._popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)
                self._signal_group(signal.SIGKILL)
        return self.pid is None

    def kill(self) -> None:
        """End it and whatever it started at once (SIGKILL to its session's group), and reap it."""
        if self._popen is not None:
            self._signal_group(signal.SIGKILL)
            self._popen.wait()

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, wait up to ``grace_s``, then SIGKILL."""
        self.terminate()
        if not self.wait(grace_s):
            self.kill()

    def last_lines(self, count: int = 1) -> list[str]:
        """The last lines that this launch wrote, blank ones left out."""
        if not self.log_path.exists():
            return []
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(min(self._log_start, size), size - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-count:]

    def bound_log(self, limit_bytes: int) -> None:
        """Move a log that has grown over the limit to ``<log>.1``; the child goes on writing at the start."""
        if self.log_path.exists() and self.log_path.stat().st_size > limit_bytes:
            shutil.copyfile(self.log_path, f"{self.log_path}.1")
            os.truncate(self.log_path, 0)
            self._log_start = 0

    def _signal_group(self, number: signal.Signals) -> None:
        # The group outlives its leader only where the child left children of its own.
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, number)


def describe_exit(status: int) -> str:
    """An exit status in words: ``exit status 1`` or ``killed by SIGKILL``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
