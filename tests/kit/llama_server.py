"""Starts and stops the real llama.cpp for tests."""

from __future__ import annotations

import asyncio
import os
import selectors
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pytest

_START_S = 20.0


def require_llama_cpp() -> None:
    """Skip the test where the wheel is not installed; in CI (variable ``CI``) fail instead."""
    missing = [name for name in ("xllamacpp", "gguf") if find_spec(name) is None]
    if not missing:
        return
    reason = f"real llama.cpp needs {' and '.join(missing)}: pip install -r requirements-dev.txt"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class LlamaServer:
    """A llama.cpp process serving one model on a free port (or ``port``); use it as a context manager.

    ``context_tokens`` is what each slot gets. ``sleep_idle_s`` lets it fall asleep. As an async context
    manager it starts without blocking the loop.
    """

    def __init__(
        self,
        model: Path,
        *,
        alias: str = "tiny",
        slots: int = 2,
        context_tokens: int = 4096,
        port: int = 0,
        sleep_idle_s: int | None = None,
        api_key: str | None = None,
        flags: tuple[str, ...] = (),
    ) -> None:
        self.alias = alias
        self.slots = slots
        self.context_tokens = context_tokens
        self.url = ""
        script = Path(__file__).with_name("llama_serve.py")
        self._command = [sys.executable, "-P", str(script), "--model", str(model)]
        self._command += ["--alias", alias, "--port", str(port)]
        self._command += ["--slots", str(slots), "--context", str(slots * context_tokens), *flags]
        if sleep_idle_s is not None:
            self._command += ["--sleep-idle-seconds", str(sleep_idle_s)]
        if api_key is not None:
            self._command += ["--api-key", api_key]
        self._log = model.with_name(f"{alias}-{id(self):x}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; it must run."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens; fails with the end of its log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        line = _first_line(self._process.stdout, _START_S)
        if not line.startswith("LISTEN "):
            self.kill()
            pytest.fail(f"llama.cpp did not start: {self._log.read_text(errors='replace')[-2000:]}")
        self.url = line.removeprefix("LISTEN ")

    def kill(self) -> None:
        """End it as a crash would."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.kill)


def _first_line(stream: IO[bytes], timeout_s: float) -> str:
    """The first line that a process writes, empty if it ends or stays silent."""
    limit = time.monotonic() + timeout_s
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not said.endswith(b"\n") and selector.select(max(0.0, limit - time.monotonic())):
            byte = os.read(stream.fileno(), 1)
            if not byte:
                break
            said += byte
    return said.decode(errors="replace").strip()
