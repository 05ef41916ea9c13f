"""A run of ``make up``'s supervisor as a process, on ports of its own, with stand-ins or real services."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from shared.errors import StoreUnavailable
from shared.log_lines import said_in
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.waiting import wait_until

DRIVER = Path(__file__).resolve().parents[1] / "e2e" / "stand_in_up.py"


def running(pids: Iterable[int]) -> list[int]:
    """Those that still run; a process that merely waits to be reaped doesn't."""
    alive = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.NoSuchProcess:
            continue
    return alive


class Up:
    """One run of the supervisor in a directory of its own, on ports of its own."""

    def __init__(self, directory: Path, command: list[str], settings: dict[str, str]) -> None:
        self.directory = directory
        self.services = [word.partition("=")[0] for word in command if "=" in word]
        self.api_port = int(settings.setdefault("ORCH_API__PORT", str(free_port())))
        self.redis_port = int(settings.setdefault("ORCH_REDIS__EMBEDDED_PORT", str(free_port())))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
        with (directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=directory,
                env={**inherited, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return (self.directory / "output").read_text()

    @property
    def stopped(self) -> list[str]:
        """Names of the children that ended in order, first one first."""
        path = self.directory / "stopped"
        return path.read_text().split() if path.exists() else []

    async def ready(self) -> None:
        """Wait until up says so and every stand-in has come so far as to take signals."""

        def over() -> bool:
            return "is ready" in self.output or self.process.poll() is not None

        await wait_until(over, "up is ready", timeout_s=60)
        assert "is ready" in self.output, self.output
        for name in self.services:
            await wait_until((self.directory / f"{name}-ran").exists, f"{name} has started")

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def redis_pid(self) -> int | None:
        """Redis's, once it answers."""
        try:
            info = redis_reply(f"redis://127.0.0.1:{self.redis_port}/0", "INFO", "server")
        except StoreUnavailable:
            return None
        assert isinstance(info, bytes)
        return int(info.partition(b"process_id:")[2].split()[0])

    def lines(self, part: str) -> list[str]:
        """What it said with this in it, of its log the messages."""
        return [said for line in self.output.splitlines() if part in (said := said_in(line))]


class Starter:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.started: list[Up] = []

    def __call__(self, *services: str, ready_timeout_s: float = 60.0, **settings: str) -> Up:
        return self._start([str(DRIVER), str(ready_timeout_s), *services], settings)

    def real(self, **settings: str) -> Up:
        """The real services instead of stand-ins."""
        return self._start(["-m", "services.up"], settings)

    def _start(self, command: list[str], settings: dict[str, str]) -> Up:
        self.started.append(Up(self._directory, command, settings))
        return self.started[-1]
