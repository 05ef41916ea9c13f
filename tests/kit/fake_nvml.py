"""The real nvidia-ml-py on a fake NVML: builds the library from C, and reads it in a process of its own.

One process can load one library only, so this module is also that process: ``python -m tests.kit.fake_nvml``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest

from shared.config import parse
from shared.gpu.choice import choose_source
from shared.gpu.nvml import NvmlSource
from shared.gpu.source import GpuUnavailable

SOURCE = Path(__file__).with_suffix(".c")
ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "libnvidia-ml.so.1"
GB = 2**30


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def require_compiler() -> None:
    """Skip the test where there is no C compiler; in CI (variable ``CI``) fail instead."""
    if compiler() is not None:
        return
    reason = "the fake NVML needs a C compiler (gcc or cc)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def build(directory: Path, *, old_driver: bool = False) -> Path:
    """Compile the library into a directory, which is then what LD_LIBRARY_PATH must name."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [str(compiler()), "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    command += [f"-Wl,-soname,{LIBRARY}", *(["-DOLD_DRIVER"] if old_driver else [])]
    subprocess.run([*command, "-o", str(directory / LIBRARY), str(SOURCE)], check=True)
    return directory


def unloadable(directory: Path) -> Path:
    """A directory whose library can't be loaded, which hides a real one that the machine may have."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / LIBRARY).write_text("this is no library")
    return directory


def card(index: int, **changes: object) -> dict[str, object]:
    """The state of a card that answers everything; None leaves a reading out, so that it is not supported."""
    state: dict[str, object] = {
        "name": "NVIDIA GeForce RTX 3090",
        "uuid": f"GPU-fake-{index}",
        "mem_total": 24 * GB,
        "mem_used": 8 * GB,
        "mem_reserved": 0,
        "util": 37,
        "temp": 61,
        "power": 182_500,
        "power_limit": 350_000,
        "fan": 45,
        "reasons": 0,
        "compute": "",
        "graphics": "",
    }
    return {f"gpu{index}.{name}": value for name, value in {**state, **changes}.items() if value is not None}


def write_state(path: Path, *states: Mapping[str, object]) -> None:
    """Replace what the library answers, all at once."""
    lines = [f"{key} {value}" for state in states for key, value in state.items()]
    scratch = path.with_suffix(".new")
    scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
    scratch.replace(path)


def environment(library: Path, state: Path) -> dict[str, str]:
    """What lets a process find the library and what it shall answer."""
    return {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(state)}


class NvmlReader:
    """A process that reads the fake library whenever it is asked to."""

    def __init__(self, library: Path, state: Path) -> None:
        self._library = library
        self._state = state
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.fake_nvml"],
            cwd=ROOT,
            env={**os.environ, **environment(self._library, self._state)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def fresh(self, *, patience_s: float = 5.0) -> None:
        """Go on with a new source in the same process."""
        self._ask(f"fresh {patience_s}")

    def set(self, *states: Mapping[str, object]) -> None:
        """Replace the whole state at once."""
        write_state(self._state, *states)

    def try_read(self) -> dict[str, Any]:
        """``{"readings": [...]}``, or ``{"cause": ..., "detail": ...}``."""
        return self._ask("read")

    def read(self) -> list[dict[str, Any]]:
        """The readings; the test fails if there are none now."""
        answer = self.try_read()
        assert "readings" in answer, answer
        readings: list[dict[str, Any]] = answer["readings"]
        return readings

    def cause(self) -> str:
        """Why there are no readings; the test fails if there are some."""
        answer = self.try_read()
        assert "cause" in answer, answer
        return str(answer["cause"])

    def choice(self, source: str) -> str | None:
        """The name of the source that a host with real models takes under this ``gpu.source``."""
        answer = self._ask(f"choose {source}")
        return None if answer["source"] is None else str(answer["source"])

    def calls_under_way(self) -> int:
        """Threads that are inside the driver now."""
        return int(self._ask("calls")["calls"])

    def quit(self, timeout_s: float) -> int:
        """Let the process end by itself; its exit status."""
        assert self._process is not None
        self._process.communicate(timeout=timeout_s)
        return self._process.returncode

    def _ask(self, question: str) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


async def _choose(wanted: str) -> dict[str, Any]:
    settings = parse({"gpu": {"source": wanted}, "models": [{"name": "real", "port": 8080}]}, "test")
    async with aiohttp.ClientSession() as session:
        chosen = await choose_source(settings, session)
    return {"source": chosen.name if chosen else None}


async def _read(source: NvmlSource) -> dict[str, Any]:
    try:
        readings = await source.read()
    except GpuUnavailable as error:
        return {"cause": error.cause, "detail": error.detail}
    return {"readings": [{**asdict(one), "memory_used_mb": one.memory_used_mb} for one in readings]}


async def _serve() -> None:
    source = NvmlSource()
    while words := (await asyncio.to_thread(sys.stdin.readline)).split():
        match words:
            case ["fresh", patience_s]:
                await source.aclose()
                source = NvmlSource(patience_s=float(patience_s))
                answer: dict[str, Any] = {}
            case ["calls"]:
                answer = {"calls": sum(thread.name == "nvml" for thread in threading.enumerate())}
            case ["choose", wanted]:
                answer = await _choose(wanted)
            case _:
                answer = await _read(source)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    await source.aclose()


if __name__ == "__main__":
    asyncio.run(_serve())
