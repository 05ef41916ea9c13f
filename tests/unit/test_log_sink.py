"""Where lines go when a file or whoever reads them fails: never back to whoever logs."""

from __future__ import annotations

import io
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from shared.log_lines import Entry, text_line
from shared.log_sink import BoundedFile, Lines

_MOST_BYTES = 8_000_000


@pytest.fixture
def small_files() -> Iterator[int]:
    """This process may write files of so many bytes; more is an ``OSError``, as on a full disk.

    Far more than the report of the tests, which it writes as well.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_BYTES, before[1]))
    yield _MOST_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_file_that_is_full_and_has_room_again_is_said_each_time(tmp_path: Path, small_files: int) -> None:
    path, stream = tmp_path / "api.log", io.StringIO()
    path.touch()
    os.truncate(path, small_files - 200)
    sink = logger.add(
        Lines(stream, text_line, text_line, BoundedFile(path)), format=lambda _: "", catch=False
    )
    said = logger.bind(service="api")
    try:
        for number in range(8):
            said.info("line {} with password=hunter2", number)
        full = path.stat().st_size
        path.write_text("")
        said.info("room again")
        said.info("and on")
    finally:
        logger.remove(sink)

    assert full == small_files
    shown = stream.getvalue()
    assert shown.count("can't be written") == 1
    assert shown.count("is written again") == 1
    assert "hunter2" not in shown
    assert [shown.count(f"line {number} ") for number in range(8)] == [1] * 8
    kept = [line for line in path.read_text().splitlines() if line]
    assert [line.endswith(end) for line, end in zip(kept, ("room again", "and on"), strict=True)] == [
        True
    ] * 2


def test_a_file_that_can_not_make_way_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "api.log"
    path.parent.mkdir()
    file = BoundedFile(path, most_bytes=100)
    (tmp_path / "logs" / "api.log.1").mkdir()
    (tmp_path / "logs" / "api.log.1" / "in the way").touch()
    file.write("x" * 150)
    with pytest.raises(OSError, match="directory"):
        file.write("lost")
    (tmp_path / "logs" / "api.log.1" / "in the way").unlink()
    (tmp_path / "logs" / "api.log.1").rmdir()
    file.write("kept")
    file.close()

    assert path.read_text() == "kept\n"


class _Unwritable:
    def __str__(self) -> str:
        raise RuntimeError("password=hunter2")


def test_neither_a_closed_stream_nor_an_unwritable_value_reaches_whoever_logs() -> None:
    stream = io.StringIO()
    sink = logger.add(Lines(stream, text_line, text_line, None), format=lambda _: "", catch=False)
    try:
        logger.info("x", service="api", value=_Unwritable())
        shown = stream.getvalue()
        stream.close()
        logger.info("y", service="api")
    finally:
        logger.remove(sink)

    assert "WARNING api a line can't be made of what was logged: RuntimeError" in shown
    assert "hunter2" not in shown


class _Talkative(io.StringIO):
    """Logs while it is written, as what the garbage collector finds may."""

    said = False

    def write(self, text: str) -> int:
        if not self.said:
            self.said = True
            self.lines.put(Entry("now", "INFO", "api", None, "found meanwhile", {}))
        return super().write(text)

    lines: Lines


def test_a_line_that_is_logged_while_another_is_written_holds_nothing_up() -> None:
    stream = _Talkative()
    stream.lines = Lines(stream, text_line, text_line, None)
    stream.lines.put(Entry("now", "INFO", "api", "dispatch", None, {"job": "7"}))

    assert sorted(stream.getvalue().splitlines()) == [
        "now INFO    api event=dispatch job=7",
        "now INFO    api found meanwhile",
    ]
