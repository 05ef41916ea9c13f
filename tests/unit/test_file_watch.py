"""Following a file: what counts as a version, what is said of one that is wrong, and what is waited for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from services.up.app import write_effective
from shared import config
from shared.config import Settings
from shared.file_watch import COMPLETE, FileWatch, Warned, follow_file, read_changed
from shared.gpu.thread import call_in_daemon_thread
from shared.reload import LiveSettings, compare
from tests.kit.monitor import log_lines
from tests.kit.waiting import wait_until

GOOD = "queue: {bound: 100}\n"
OTHER = "queue: {bound: 200}\n"


def write(path: Path, text: str) -> None:
    """Write a version a second after the one before, whatever the clock of the file system tells apart."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text, encoding="utf-8")
    if before:
        os.utime(path, ns=(before + 10**9, before + 10**9))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    write(path, GOOD)
    return path


@pytest.fixture
def watch(path: Path) -> FileWatch:
    """A watch that has seen the first version."""
    watch = FileWatch(path, lambda: read_changed(path, {}))
    assert bound(settled(watch)) == 100
    return watch


@pytest.fixture
def log() -> Iterator[list[str]]:
    with log_lines() as lines:
        yield lines


def settled(watch: FileWatch) -> Settings | None:
    """What a watch says of a file that stays as it is."""
    return next((found for found in (watch.look() for _ in range(4)) if found is not None), None)


def bound(found: Settings | None) -> int | None:
    return None if found is None else found.queue.bound


def test_a_version_counts_at_the_second_look_and_only_once(path: Path) -> None:
    watch = FileWatch(path, lambda: read_changed(path, {}))
    assert [bound(watch.look()) for _ in range(4)] == [None, 100, None, None]


def test_a_change_of_the_same_length_counts(path: Path, watch: FileWatch) -> None:
    write(path, OTHER)
    assert bound(settled(watch)) == 200


def test_a_file_that_an_editor_puts_in_its_place_counts(path: Path, watch: FileWatch) -> None:
    """Even with the time and the length of the one before."""
    before = path.stat()
    new = path.with_suffix(".swp")
    new.write_text(OTHER, encoding="utf-8")
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)
    assert bound(settled(watch)) == 200


def test_a_link_that_is_turned_to_another_directory_counts(tmp_path: Path) -> None:
    """As Kubernetes swaps a mounted ConfigMap."""
    for name, text in (("v1", GOOD), ("v2", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.yaml").write_text(text, encoding="utf-8")
    data, path = tmp_path / "data", tmp_path / "settings.yaml"
    data.symlink_to("v1")
    path.symlink_to("data/settings.yaml")
    watch = FileWatch(path, lambda: read_changed(path, {}))
    assert bound(settled(watch)) == 100

    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").replace(data)
    assert bound(settled(watch)) == 200


def test_a_file_that_still_grows_is_waited_for(path: Path, watch: FileWatch, log: list[str]) -> None:
    whole = "models: [{name: one, port: 9001}]\nqueue: {bound: 300}\n"
    for end in range(10, len(whole), 10):
        write(path, whole[:end])
        assert watch.look() is None
    write(path, whole)
    assert bound(settled(watch)) == 300
    assert not [line for line in log if "wrong" in line]


def test_a_file_that_is_written_to_while_it_is_read_is_read_again(path: Path, log: list[str]) -> None:
    reads: list[str] = []

    def read() -> Settings:
        found = path.read_text(encoding="utf-8")
        reads.append(found)
        if len(reads) == 1:
            write(path, OTHER + "# more\n")
            return Settings()  # of what was half of it
        return read_changed(path, {})

    watch = FileWatch(path, read)
    assert bound(settled(watch)) == 200
    assert len(reads) == 2
    assert log == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("queue: {bound: 0}", "queue.bound = 0: Input should be greater than or equal to 1"),
        ("queue: {bond: 5}", "unknown key 'queue.bond': did you mean 'bound'?"),
        ("queue: {bound", "is not YAML"),
        ("api: 2026-13-45", "is not YAML"),
        ("api: !!timestamp never", "is not YAML"),
        ("api: !!bool perhaps", "is not YAML"),
        ("api: {port: 1\nqueue: [", "is not YAML: line 2, column 6: while parsing"),
        ("[" * 5000, "is not YAML"),
        ("", "is empty"),
        ("# queue: {bound: 5}\n", "is empty"),
        ("\n  \n", "is empty"),
        ("{}", "is empty"),
        ("---\nqueue:\n# {bound: 5}\nmodels:\n", "is empty"),
    ],
)
def test_a_broken_file_is_said_once_and_says_nothing_else(
    path: Path, watch: FileWatch, log: list[str], text: str, said: str
) -> None:
    write(path, text)
    assert [watch.look() for _ in range(5)] == [None] * 5

    (line,) = log
    assert line.startswith("the changed settings are wrong, so nothing changes: ")
    assert said in line
    assert str(path) in line

    write(path, "queue: {bound: x}")
    assert settled(watch) is None
    assert len(log) == 2

    write(path, OTHER)
    assert bound(settled(watch)) == 200
    assert log[2:] == [f"{path} is right again"]


def test_a_password_in_a_broken_file_is_not_said(path: Path, watch: FileWatch, log: list[str]) -> None:
    for text in (
        "redis: {url: 'http://me:hunter2@10.0.0.2'}",
        "redis: redis://:hunter2@10.0.0.2/0",
        "redis: {url: 'hunter2@10.0.0.2'}",
        "redis: {'urlhunter2@10.0.0.2': 1}",
        "redis: {url: redis://:hunter2@10.0.0.2/0\nqueue: [",
        "models: [{name: a, url: 'ftp://me:hunter2@10.0.0.2'}]",
    ):
        write(path, text)
        assert settled(watch) is None
    assert len(log) == 6
    assert "hunter2" not in "".join(log)


def test_a_file_that_is_away_for_a_moment_is_nothing_to_talk_about(
    path: Path, watch: FileWatch, log: list[str]
) -> None:
    path.unlink()
    assert [watch.look() for _ in range(2)] == [None, None]
    write(path, OTHER)
    assert bound(settled(watch)) == 200
    assert log == []


def test_a_file_that_stays_away_is_said_once_and_changes_nothing(
    path: Path, watch: FileWatch, log: list[str]
) -> None:
    path.unlink()
    assert [watch.look() for _ in range(8)] == [None] * 8
    (line,) = log
    assert line == f"{path} is gone (No such file or directory): nothing changes till it is back"

    write(path, OTHER)
    assert bound(settled(watch)) == 200
    assert log[1:] == [f"{path} is there again"]


def test_a_process_that_was_started_with_an_empty_file_has_nothing_to_say_of_it(
    path: Path, log: list[str]
) -> None:
    write(path, "# queue: {bound: 5}\n")
    watch = FileWatch(path, lambda: read_changed(path, {}))
    assert settled(watch) is None
    write(path, OTHER)
    assert bound(settled(watch)) == 200
    assert log == []


def test_a_pipe_in_place_of_the_file_is_not_read_and_said_once(
    path: Path, watch: FileWatch, log: list[str]
) -> None:
    path.unlink()
    os.mkfifo(path)
    looking = call_in_daemon_thread(lambda: [watch.look() for _ in range(8)], "looks")
    assert looking.result(timeout=30) == [None] * 8
    assert log == [f"{path} is no regular file: nothing changes till it is one"]

    path.unlink()
    write(path, OTHER)
    assert bound(settled(watch)) == 200


def test_a_file_that_says_that_it_is_complete_counts_at_the_first_look(path: Path, watch: FileWatch) -> None:
    write(path, OTHER + COMPLETE)
    assert bound(watch.look()) == 200
    assert watch.look() is None


def test_what_the_supervisor_writes_counts_at_the_first_look(tmp_path: Path) -> None:
    path = write_effective(config.parse({"queue": {"bound": 200}}, "test"), tmp_path / "effective.yaml")
    assert bound(FileWatch(path, lambda: read_changed(path, {})).look()) == 200


async def test_a_change_that_cannot_be_carried_out_is_an_error_and_the_next_one_is_followed(
    path: Path, log: list[str]
) -> None:
    live = LiveSettings.of(config.load({"ORCH_CONFIG": str(path)}))
    seen: list[int] = []

    async def refuse() -> None:
        seen.append(live.queue.bound)
        raise RuntimeError("NOPERM no permissions")

    following = asyncio.create_task(follow_file(live, "api", {"ORCH_CONFIG": str(path)}, refuse))
    for wanted, text in ((200, OTHER), (300, OTHER.replace("200", "300"))):
        write(path, text + COMPLETE)
        await wait_until(partial(_is_over, following, seen, wanted), "it is followed")
        assert not following.done()
    following.cancel()
    await asyncio.wait({following})
    said = f"what has changed in {path} is not carried out: RuntimeError: NOPERM no permissions"
    assert log.count(said) == 2


def _is_over(following: asyncio.Task[None], seen: list[int], wanted: int) -> bool:
    return wanted in seen or following.done()


def test_the_environment_still_wins(path: Path) -> None:
    environ = {"ORCH_QUEUE__BOUND": "7", "ORCH_CONFIG": "another.yaml"}
    watch = FileWatch(path, lambda: read_changed(path, environ))
    assert bound(settled(watch)) == 7


def test_what_needs_a_restart_is_said_once_for_each_value_by_the_service_that_it_concerns(
    log: list[str],
) -> None:
    warned = Warned()
    running = config.parse({}, "test")
    for port in (9000, 9000, 9001):
        wanted = config.parse({"api": {"port": port}, "simulator": {"load_s": 2}}, "test")
        warned.warn(compare(running, wanted), "api", wanted)
    warned.warn(compare(running, running), "api", running)
    line = "api.port: needs a restart of api; until then what was counts"
    assert log == [line, line]

    Warned().warn(compare(running, wanted), None, wanted)
    assert log[2:] == [line, line.replace("api.port", "simulator.load_s").replace("of api", "of simulator")]
