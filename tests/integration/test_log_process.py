"""Where the log of a process goes, and in which form: a terminal, a pipe, the file."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.stack import ROOT

_PROGRAM = """
import sys
from loguru import logger
from shared import config, log
settings = config.load({"ORCH_LOG__DIR": sys.argv[1], "ORCH_LOG__FORMAT": sys.argv[2]})
log.configure("api", settings.log)
log.configure("api", settings.log)
log.event("dispatch", job="7", total_ms=1.5)
log.event("request", "DEBUG", path="/not-shown")
logger.debug("not shown")
"""


def _run(directory: Path, form: str, stderr: int, **environ: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, "-c", _PROGRAM, str(directory / "logs"), form]
    subprocess.run(command, cwd=ROOT, env={**inherited, **environ}, stderr=stderr, check=True, timeout=60)


def _on_terminal(directory: Path, form: str, **environ: str) -> str:
    """What a terminal shows."""
    ours, its = pty.openpty()
    try:
        _run(directory, form, its, **environ)
        return os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(its)


def _on_pipe(directory: Path, form: str) -> str:
    """What somebody who collects stderr gets."""
    path = directory / "stderr"
    with path.open("wb") as file:
        _run(directory, form, file.fileno())
    return path.read_text()


def test_a_terminal_gets_text_in_colours_and_the_file_text_without(tmp_path: Path) -> None:
    shown = _on_terminal(tmp_path, "auto")

    assert "\033[" in shown
    assert "event=dispatch job=7 total_ms=1.5" in shown
    (kept,) = (tmp_path / "logs" / "api.log").read_text().splitlines()
    assert kept.endswith("INFO    api event=dispatch job=7 total_ms=1.5")


def test_colours_can_be_done_without(tmp_path: Path) -> None:
    shown = _on_terminal(tmp_path, "auto", NO_COLOR="1")

    assert "event=dispatch job=7" in shown
    assert "\033" not in shown


def test_whoever_collects_stderr_gets_one_object_a_line_and_the_file_is_text(tmp_path: Path) -> None:
    line = json.loads(_on_pipe(tmp_path, "auto"))

    assert line.keys() == {"ts", "level", "service", "event", "job", "total_ms"}
    assert (line["level"], line["service"], line["event"]) == ("INFO", "api", "dispatch")
    (kept,) = (tmp_path / "logs" / "api.log").read_text().splitlines()
    assert kept.startswith(f"{line['ts']} INFO    api event=dispatch")


def test_the_form_can_be_set(tmp_path: Path) -> None:
    assert _on_pipe(tmp_path, "text").endswith("INFO    api event=dispatch job=7 total_ms=1.5\n")
    assert json.loads(_on_terminal(tmp_path, "json"))["job"] == "7"


def test_a_directory_that_cannot_be_written_is_said_and_the_log_goes_on(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file, not a directory")
    lines = [json.loads(line) for line in _on_pipe(tmp_path, "auto").splitlines()]

    assert [line["level"] for line in lines] == ["WARNING", "WARNING", "INFO"]
    assert "logging to stderr only" in lines[0]["message"]
    assert lines[-1]["event"] == "dispatch"


@pytest.mark.parametrize("form", ["auto", "json", "text"])
def test_a_stderr_that_nobody_reads_any_more_loses_no_line_of_the_file(tmp_path: Path, form: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        _run(tmp_path, form, writing)
    finally:
        os.close(writing)

    assert len((tmp_path / "logs" / "api.log").read_text().splitlines()) == 1


_FULL_DISK = """
import os, sys
from loguru import logger
from shared import config, log
path = os.path.join(sys.argv[1], "api.log")
os.mkdir(sys.argv[1])
os.symlink("/dev/full", path)
settings = config.load({"ORCH_LOG__DIR": sys.argv[1], "ORCH_LOG__FORMAT": "json"})
log.configure("api", settings.log)
for number in range(3):
    log.event("request", path="/x?key=hunter2hunter2", job=str(number))
"""


def test_a_full_disk_is_said_once_and_every_line_stays_a_line_without_secrets(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "logs")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]

    assert [line.get("job") for line in lines] == [None, "0", "1", "2"]
    assert "No space left on device" in lines[0]["message"]
    assert lines[0]["level"] == "WARNING"
    assert "hunter2" not in ran.stderr


_STDLIB = """
import logging, sys
from shared import config, log
log.configure("api", config.load({"ORCH_LOG__DIR": sys.argv[1], "ORCH_LOG__FORMAT": "json"}).log)
for level in (logging.CRITICAL, logging.ERROR, 35, logging.WARNING):
    logging.getLogger("lib").log(level, "said")
"""


def test_a_level_of_the_standard_library_is_never_made_less_of(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _STDLIB, str(tmp_path / "logs")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)

    levels = [json.loads(line)["level"] for line in ran.stderr.splitlines()]
    assert levels == ["ERROR", "ERROR", "WARNING", "WARNING"]
