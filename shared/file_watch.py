"""Follows the settings file of a running process, and takes nothing that is half-written or broken."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from loguru import logger

from shared import config, log
from shared.config import Settings
from shared.errors import ConfigError
from shared.gpu.thread import call_in_daemon_thread, ended
from shared.reload import Change, LiveSettings, compare
from shared.yaml_text import parsed

EVERY_S = 1.0
"""Between two looks. A file counts once it was the same at two of them: a change takes one to two seconds."""
COMPLETE = "# Complete: written in one step.\n"
"""A file that ends with this counts at the first look."""
_ABSENT_LOOKS = 3
"""Editors and mounts take a file away for a moment: only one that stays away is worth a word."""

HANGS_S = 60.0
"""A look that takes this long is worth a word, and again after as long."""

_Stamp = tuple[int, int, int, int]


class _Empty(ConfigError):
    """There is no setting in the file."""


class FileWatch:
    """Says once for each new version of a file what ``read`` makes of it."""

    def __init__(self, path: Path, read: Callable[[], Settings]) -> None:
        """``read`` raises ``ConfigError`` for a file that is broken."""
        self._path = path
        self._read = read
        self._done: _Stamp | None = None
        self._seen: _Stamp | None = None
        self._absent = 0
        self._broken = False

    def look(self) -> Settings | None:
        """The settings of a version that was not looked at before, is complete and right; else None.

        A version that is wrong is said once, in the log. The first version counts as new: it may have been
        written after this process read its settings.
        """
        stamp = self._stamp()
        if stamp is None or stamp == self._done:
            self._seen = stamp
            return None
        if stamp != self._seen and not self._is_complete():
            self._seen = stamp
            return None
        return self._take(stamp)

    def _is_complete(self) -> bool:
        end = COMPLETE.encode()
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(end)))
                return file.read() == end
        except OSError:
            return False  # gone again, or no more to be read than by whoever reads it next, who says why

    def _take(self, stamp: _Stamp) -> Settings | None:
        error, settings, first = "", None, self._done is None
        try:
            settings = self._read()
        except _Empty as empty:
            # With such a file a process can start, and then nothing has changed.
            error = "" if first else str(empty)
        except (ConfigError, OSError) as broken:
            error = str(broken)
        if self._stamp() != stamp:
            self._seen = None  # written to while it was read
            return None
        self._done = stamp
        if settings is None and not error:
            return None
        if settings is None:
            logger.error("the changed settings are wrong, so nothing changes: {}", error)
        elif self._broken:
            logger.info("{} is right again", self._path)
        self._broken = settings is None
        return settings

    def _stamp(self) -> _Stamp | None:
        """What differs between two versions of the file; through links, as mounts of Kubernetes swap them."""
        try:
            found = self._path.stat()
        except OSError as error:
            self._miss(f"is gone ({error.strerror}): nothing changes till it is back")
            return None
        if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
            self._miss("is no regular file: nothing changes till it is one")
            return None
        if self._absent >= _ABSENT_LOOKS:
            logger.info("{} is there again", self._path)
        self._absent = 0
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev

    def _miss(self, why: str) -> None:
        self._absent += 1
        if self._absent == _ABSENT_LOOKS:
            logger.warning("{} {}", self._path, why)


class Warned:
    """Says of each change that waits for a restart once that it does."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def warn(self, change: Change, service: str | None, wanted: Settings) -> None:
        """``service``: only its own changes concern it (None: all); ``wanted`` is what the file says."""
        waiting = {
            one.what: (repr(_value(wanted, one.what)), one.services)
            for one in change.restarts
            if service is None or service in one.services
        }
        for what, (value, services) in waiting.items():
            if self._said.get(what) != value:
                of = service or ", ".join(services)
                logger.warning("{}: needs a restart of {}; until then what was counts", what, of)
        self._said = {what: value for what, (value, _) in waiting.items()}


async def follow_file(
    live: LiveSettings,
    service: str,
    environ: Mapping[str, str],
    on_change: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Keep ``live`` as the file says, until cancelled; returns at once where there is no file.

    ``on_change`` is awaited after each change of which something took effect; what it raises is logged as an
    error, and the file is followed all the same.
    """
    name = environ.get("ORCH_CONFIG")
    if not name:
        return
    path, warned, simulated = Path(name), Warned(), live.simulates
    watch = FileWatch(path, lambda: read_changed(path, environ))
    while True:
        await asyncio.sleep(EVERY_S)
        # In a thread: a network file system that hangs must hold up neither the process nor its end.
        looking = call_in_daemon_thread(watch.look, "settings file")
        while not await ended(looking, HANGS_S):
            say_hangs(path)
        wanted = looking.result()
        if wanted is None:
            continue
        change = compare(live, wanted, simulated=simulated)
        warned.warn(change, service, wanted)
        if change.effects:
            live.take(change.settings)
            if "log" in change.sections:
                log.configure(service, live.log)
            logger.info("{} has changed, in effect from now on: {}", path, "; ".join(change.effects))
            if on_change is not None:
                await _carry_out(on_change, path)


async def _carry_out(on_change: Callable[[], Awaitable[None]], path: Path) -> None:
    """What a file asks for may be refused (by Redis, by a port): no reason to end what runs."""
    try:
        await on_change()
    except Exception as error:
        logger.error("what has changed in {} is not carried out: {}: {}", path, type(error).__name__, error)


def say_hangs(path: Path) -> None:
    """Say in the log that a look has lasted ``HANGS_S`` seconds."""
    logger.warning("{} is not read: its file system hangs", path)


def read_changed(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings of a process that runs already, with the environment over the file, as at its start.

    Raises ``ConfigError``, also for a file without any setting (empty, or of comments only): it is on its way
    to become something, and is no order to reset all.
    """
    settings = config.load({**environ, "ORCH_CONFIG": str(path)})
    if _is_empty(path):
        raise _Empty(f"{path}: is empty: no setting is in it")
    return settings


def _is_empty(path: Path) -> bool:
    """Whether all of it is white space, comments, and sections with nothing in them."""
    try:
        sections = parsed(path.read_text(encoding="utf-8")) or {}
        return all(section is None for section in sections.values())
    except Exception as error:
        # It was right a moment ago, so it is being written to, and the next look says what it has become.
        raise ConfigError(f"{path}: changed while it was read: {type(error).__name__}") from None


def _value(settings: Settings, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section, None), name, None)
