"""Follows the settings file of a running process, and takes nothing that is half-written or broken."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from loguru import logger

from shared import config, log
from shared.config import Settings
from shared.errors import ConfigError
from shared.gpu.thread import call_in_daemon_thread, ended
from shared.reload import Change, LiveSettings, compare

EVERY_S = 1.0
"""Between two looks. A file counts once it was the same at two of them: a change takes one to two seconds."""
_ABSENT_LOOKS = 3
"""Editors and mounts take a file away for a moment: only one that stays away is worth a word."""

_HANGS_S = 60.0

_Stamp = tuple[int, int, int, int]


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
        if stamp != self._seen:
            self._seen = stamp
            return None
        return self._take(stamp)

    def _take(self, stamp: _Stamp) -> Settings | None:
        error, settings = "", None
        try:
            settings = self._read()
        except (ConfigError, OSError) as broken:
            error = str(broken)
        if self._stamp() != stamp:
            self._seen = None  # written to while it was read
            return None
        self._done = stamp
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
            self._absent += 1
            if self._absent == _ABSENT_LOOKS:
                logger.warning("{} is gone ({}): nothing changes till it is back", self._path, error.strerror)
            return None
        if self._absent >= _ABSENT_LOOKS:
            logger.info("{} is there again", self._path)
        self._absent = 0
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


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

    ``on_change`` is awaited after each change of which something took effect.
    """
    name = environ.get("ORCH_CONFIG")
    if not name:
        return
    path, warned = Path(name), Warned()
    watch = FileWatch(path, lambda: read_changed(path, environ))
    while True:
        await asyncio.sleep(EVERY_S)
        # In a thread: a network file system that hangs must hold up neither the process nor its end.
        looking = call_in_daemon_thread(watch.look, "settings file")
        while not await ended(looking, _HANGS_S):
            logger.warning("{} is not read: its file system hangs", path)
        wanted = looking.result()
        if wanted is None:
            continue
        change = compare(live, wanted)
        warned.warn(change, service, wanted)
        if change.effects:
            live.take(change.settings)
            if "log" in change.sections:
                log.configure(service, live.log)
            logger.info("{} has changed, in effect from now on: {}", path, "; ".join(change.effects))
            if on_change is not None:
                await on_change()


def read_changed(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings of a process that runs already, with the environment over the file, as at its start.

    Raises ``ConfigError``, also for a file that is empty: it is on its way to become something, and is no
    order to take every model out of service.
    """
    settings = config.load({**environ, "ORCH_CONFIG": str(path)})
    if not os.path.getsize(path):
        raise ConfigError(f"{path}: is empty")
    return settings


def _value(settings: Settings, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section, None), name, None)
