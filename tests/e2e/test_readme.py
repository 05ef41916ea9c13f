"""The README's commands, word for word, where nothing is installed but what it asks for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shared import config
from shared.store.server import PROGRAMS, SYSTEM_DIRECTORIES, WHEEL
from tests.kit.stack import ROOT
from tests.kit.waiting import wait_until

PORTS = (8000, 6390)
"""The README speaks of the default ports, so they must be free for this test."""
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS_AT_HAND = ("make", "curl", "sh", "bash", "touch")
"""Beside Python what the README asks for, and what any Linux has; neither a Redis nor redis-cli."""
_STARTED_BY_THE_TEST = ("make up", "make test", "make check")


def fences(language: str) -> list[str]:
    """The README's blocks of one language, in order."""
    found = _FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def commands() -> list[str]:
    """The blocks to run, without the lines that start the whole or run these very tests."""
    kept = []
    for block in fences("bash"):
        lines = [line for line in block.splitlines() if not line.startswith(_STARTED_BY_THE_TEST)]
        if any(line.strip() for line in lines):
            kept.append("\n".join(lines))
    return kept


def _first_call(block: str) -> str:
    """The first command of a block, by which its answer is found; without what follows on its line."""
    line = next(line for line in block.splitlines() if line.strip())
    return re.split(r" -H | -d | {2,}#", line.removesuffix("\\"))[0].strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project as a clone has it, sharing our virtual environment so that nothing is installed twice."""
    place = tmp_path / "clone"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.split(b"\0")  # fmt: skip
    for name in filter(None, tracked):
        source = ROOT / os.fsdecode(name)
        if source.is_file():
            target = place / os.fsdecode(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    # A directory of its own, with its own stamp: else its make would install the copy into our environment.
    venv = place / ".venv"
    venv.mkdir()
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith("."):
            (venv / part.name).symlink_to(part)
    for stamp in (".installed", ".tools"):
        (venv / stamp).touch()
    return place


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A new home and next to nothing on PATH, our own command line standing in for redis-cli."""
    home, programs = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    # Not by its name, which may be that of a version switcher's script.
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    for name in PROGRAMS_AT_HAND:
        found = shutil.which(name)
        assert found is not None, f"{name} is not installed"
        (programs / name).symlink_to(found)
    shim = programs / "redis-cli"
    shim.write_text(f'#!/bin/sh\nexec "{Path(sys.prefix) / "bin" / "gpu-orchestrator"}" redis "$@"\n')
    shim.chmod(0o755)
    return {"HOME": str(home), "PATH": str(programs), "LANG": "C.UTF-8"}


@pytest.fixture
def up(checkout: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    taken = [port for port in PORTS if _answers(port)]
    if taken:
        assert "CI" not in os.environ, f"ports {taken} are taken"
        pytest.skip(f"ports {taken} are taken: stop what runs there to test the README")
    with (checkout / "up.out").open("wb") as out:
        process = subprocess.Popen(
            ["make", "up"], cwd=checkout, env=environ, stdout=out, stderr=out, start_new_session=True
        )
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_every_command_of_the_readme_works_as_it_stands(
    up: subprocess.Popen[bytes], checkout: Path, environ: dict[str, str]
) -> None:
    out = checkout / "up.out"
    await wait_until(
        lambda: up.poll() is not None or "XREVRANGE" in out.read_text(), "make up is ready", timeout_s=120
    )
    assert up.poll() is None, out.read_text()
    assert "SIMULATED" in out.read_text().upper()
    if not any((Path(place) / name).exists() for place in SYSTEM_DIRECTORIES for name in PROGRAMS):
        assert f"from the wheel {WHEEL}" in out.read_text()

    script = "set -euo pipefail\n" + "\necho '--- next block'\n".join(commands())
    code, printed = await _run(script, checkout, environ)

    assert code == 0, printed
    answers = dict(zip(map(_first_call, commands()), printed.split("--- next block\n"), strict=True))
    first = answers["curl -s 'http://127.0.0.1:8000/v1/jobs?wait=30'"]
    job, _ = json.JSONDecoder().raw_decode(first)
    assert job["state"] == "succeeded"
    assert "[simulated" in job["result"]["text"]
    assert '"memory_used_gb"' in first
    assert "reason" in first
    openai = answers["curl -s http://127.0.0.1:8000/v1/models"]
    assert openai.count("data: [DONE]") == 1
    assert openai.count("HTTP/1.1 200 OK") == 1
    assert "x-orchestrator-model: bi-medix2" in openai
    jobs = next(text for call, text in answers.items() if call.startswith("JOB=$(curl"))
    assert '"state":"succeeded"' in jobs.replace(" ", "")
    assert "event: job.succeeded" in jobs
    redis = answers["redis-cli -p 6390 XREVRANGE orch:jobs:events + - COUNT 5"]
    assert "job.queued" in redis
    assert "ERR" not in redis

    os.killpg(up.pid, signal.SIGINT)
    await wait_until(lambda: up.poll() is not None, "make up ends")
    assert [port for port in PORTS if _answers(port)] == []


async def test_make_test_runs_the_tests_of_the_checkout(checkout: Path, environ: dict[str, str]) -> None:
    """Those of one file: it is these very tests that would run."""
    code, printed = await _run("make test ARGS='-v tests/unit/test_keys.py'", checkout, environ)

    assert code == 0, printed
    assert f"rootdir: {checkout}" in printed
    assert "PASSED" in printed
    assert "FAILED" not in printed


def test_the_configuration_of_the_readme_is_valid() -> None:
    blocks = fences("yaml")
    assert blocks
    for block in blocks:
        settings = config.parse(yaml.safe_load(block), "README.md")
        assert settings.models


async def _run(script: str, directory: Path, environ: dict[str, str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        cwd=directory,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), timeout=150)
    return process.returncode or 0, printed.decode()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
