"""Carries changes of the user's settings file into the file that the children read and follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from loguru import logger

from services.up.ports import CannotStart, require_distinct_ports
from shared.config import Settings
from shared.file_watch import EVERY_S, FileWatch, Warned, read_changed
from shared.reload import LiveSettings, compare


class FollowedFile:
    """Looks at the file that ``ORCH_CONFIG`` names; without one there is nothing to follow.

    ``settings`` are those of the start. ``write`` writes for the children; it raises ``CannotStart``.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], write: Callable[[Settings], None]
    ) -> None:
        self._live = LiveSettings.of(settings)
        self._write = write
        self._warned = Warned()
        self._due = 0.0
        name = environ.get("ORCH_CONFIG")
        self._watch = FileWatch(Path(name), lambda: _read(Path(name), environ)) if name else None

    def look(self) -> None:
        """Look if it is time to; to be called often."""
        if self._watch is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_S
        wanted = self._watch.look()
        if wanted is None:
            return
        change = compare(self._live, wanted)
        self._warned.warn(change, None, wanted)
        if not change.effects:
            return
        try:
            self._write(change.settings)
        except CannotStart as error:
            logger.error("the changed settings do not take effect: {}", error)
            return
        self._live.take(change.settings)
        logger.info("settings have changed: {}", "; ".join(change.effects))


def _read(path: Path, environ: Mapping[str, str]) -> Settings:
    settings = read_changed(path, environ)
    require_distinct_ports(settings)
    return settings
