"""Carries changes of the user's settings file into the file that the children read and follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from loguru import logger

from services.up.ports import CannotStart, require_distinct_ports
from services.up.summary import simulates
from shared.config import Settings
from shared.file_watch import EVERY_S, HANGS_S, FileWatch, Warned, read_changed, say_hangs
from shared.gpu.thread import call_in_daemon_thread
from shared.reload import LiveSettings, compare


class FollowedFile:
    """Looks at the file that ``ORCH_CONFIG`` names; without one there is nothing to follow.

    ``settings`` are those of the start. ``write`` writes for the children; it raises ``CannotStart``.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], write: Callable[[Settings], None]
    ) -> None:
        self._live = LiveSettings.of(settings)
        self._simulated = settings.simulates
        self._has_simulator = simulates(settings)
        self._write = write
        self._warned = Warned()
        self._due = 0.0
        name = environ.get("ORCH_CONFIG")
        self._path = Path(name) if name else None
        self._watch = FileWatch(Path(name), lambda: _read(Path(name), environ)) if name else None
        self._looking: Future[Settings | None] | None = None
        self._hangs_at = 0.0
        self._wanted: Settings | None = None
        self._failure = ""

    def look(self) -> None:
        """Look if it is time to, and take what an earlier look has found; to be called often, never waits."""
        if self._path is None or self._watch is None:
            return
        now = time.monotonic()
        if self._looking is None:
            if now >= self._due:
                self._due, self._hangs_at = now + EVERY_S, now + HANGS_S
                # In a thread: a file system that hangs must not keep the children from being watched.
                self._looking = call_in_daemon_thread(self._watch.look, "settings file")
        elif self._looking.done():
            found, self._looking = self._looking.result(), None
            self._wanted = found or self._wanted
            self._follow()
        elif now >= self._hangs_at:
            self._hangs_at = now + HANGS_S
            say_hangs(self._path)

    def _follow(self) -> None:
        """Write what is wanted; what cannot be written now is tried again after the next look."""
        wanted = self._wanted
        if wanted is None:
            return
        self._warned.warn(compare(self._live, wanted, simulated=self._simulated), None, wanted)
        change = compare(self._live, wanted if self._has_simulator else _unsimulated(wanted))
        if change.effects:
            try:
                self._write(change.settings)
            except CannotStart as error:
                self._fail(str(error))
                return
            self._live.take(change.settings)
            logger.info("settings have changed: {}", "; ".join(change.effects))
        self._wanted, self._failure = None, ""

    def _fail(self, failure: str) -> None:
        if failure != self._failure:
            logger.error("the changed settings do not take effect yet: {}", failure)
        self._failure = failure


def _unsimulated(settings: Settings) -> Settings:
    """Without the models that nobody would serve, whose jobs would wait till their deadlines."""
    real = tuple(model for model in settings.models if not model.simulated)
    return settings.model_copy(update={"models": real})


def _read(path: Path, environ: Mapping[str, str]) -> Settings:
    settings = read_changed(path, environ)
    require_distinct_ports(settings)
    return settings
