"""The supervisor's look at the user's file: it waits for nothing, and tries a failed write again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from services.up.app import write_effective
from services.up.followed import FollowedFile
from shared import config
from shared.config import Settings
from shared.file_watch import COMPLETE
from shared.reload import NO_SIMULATOR, OTHER_SOURCE
from tests.kit.monitor import log_lines
from tests.kit.waiting import wait_until


@pytest.fixture
def log() -> Iterator[list[str]]:
    with log_lines() as lines:
        yield lines


def _start(path: Path, bound: int) -> dict[str, str]:
    _say(path, bound)
    return {"ORCH_CONFIG": str(path)}


def _say(path: Path, bound: int) -> None:
    path.write_text(f"queue: {{bound: {bound}}}\n{COMPLETE}", encoding="utf-8")


async def test_a_write_that_fails_is_said_once_and_tried_again_till_it_succeeds(
    tmp_path: Path, log: list[str]
) -> None:
    effective = tmp_path / "effective.yaml"
    tries: list[int] = []

    def write(settings: Settings) -> None:
        tries.append(settings.queue.bound)
        write_effective(settings, effective)

    path = tmp_path / "mine.yaml"
    environ = _start(path, 100)
    followed = FollowedFile(config.load(environ), environ, write)
    effective.mkdir()  # in the way
    _say(path, 2000)

    def tried_again() -> bool:
        followed.look()
        return len(tries) >= 3

    await wait_until(tried_again, "it is tried again")
    said = [line for line in log if "do not take effect" in line]
    assert len(said) == 1
    assert "effective.yaml cannot be written" in said[0]

    effective.rmdir()

    def written() -> bool:
        followed.look()
        return effective.is_file()

    await wait_until(written, "it is written")
    assert config.load({"ORCH_CONFIG": str(effective)}).queue.bound == 2000
    assert log[-1] == "settings have changed: queue.bound 100 -> 2000"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("none", NO_SIMULATOR + ": needs a restart of make up"),
        ("auto", OTHER_SOURCE + ": needs a restart of"),
    ],
)
async def test_simulated_models_in_a_stack_without_a_simulator_wait_for_a_restart_and_do_not_count(
    tmp_path: Path, log: list[str], source: str, said: str
) -> None:
    path = tmp_path / "mine.yaml"
    written: list[Settings] = []

    def say(bound: int, *models: str) -> None:
        real = "{name: one, port: 9001}"
        text = (
            f"gpu: {{source: {source}}}\nqueue: {{bound: {bound}}}\nmodels: [{', '.join((real, *models))}]\n"
        )
        path.write_text(text + COMPLETE, encoding="utf-8")

    say(100)
    environ = {"ORCH_CONFIG": str(path)}
    followed = FollowedFile(config.load(environ), environ, written.append)

    async def carried(bound: int) -> list[str]:
        def look() -> bool:
            followed.look()
            return bool(written) and written[-1].queue.bound == bound

        await wait_until(look, "it is written")
        return [model.name for model in written[-1].registrations]

    made_up = "{name: made-up, port: 9002, simulated: true}"
    say(2000, made_up)
    assert await carried(2000) == ["one"]
    assert len([line for line in log if line.startswith(said)]) == 1
    say(300, made_up, "{name: two, port: 9003}")
    assert await carried(300) == ["one", "two"]
    say(4000)
    assert await carried(4000) == ["one"]
    assert len([line for line in log if "needs a restart" in line]) == 1


class _Hanging(Mapping[str, str]):
    """An environment that hangs when it is read as a whole, together with the file: for a disk that does."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.hangs = threading.Event()
        self.released = threading.Event()
        self.over = threading.Event()

    def __getitem__(self, name: str) -> str:
        return self._environ[name]

    def __len__(self) -> int:
        return len(self._environ)

    def __iter__(self) -> Iterator[str]:
        self.hangs.set()
        self.released.wait(20)
        self.over.set()
        return iter(self._environ)


async def test_a_file_that_hangs_does_not_hold_up_the_supervisor(tmp_path: Path) -> None:
    environ = _start(tmp_path / "mine.yaml", 100)
    hanging, written = _Hanging(environ), list[int]()
    followed = FollowedFile(
        config.load(environ), hanging, lambda settings: written.append(settings.queue.bound)
    )
    _say(tmp_path / "mine.yaml", 2000)

    def look_until(over: Callable[[], bool]) -> Callable[[], bool]:
        def look() -> bool:
            followed.look()
            return over()

        return look

    await wait_until(look_until(hanging.hangs.is_set), "the file is read")
    followed.look()
    assert not hanging.over.is_set(), "a look has waited for the file"
    assert written == []
    hanging.released.set()
    await wait_until(look_until(lambda: written == [2000]), "it is followed all the same")
