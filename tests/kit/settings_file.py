"""The settings file of a running stack, changed as people and their editors change it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.kit.stack import Stack
from tests.kit.waiting import wait_until


class SettingsFile:
    """Each change replaces the file in one step, as most editors do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first = self.read()

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self._path.read_text(encoding="utf-8"))
        return found

    def set(self, section: str, **keys: Any) -> None:
        """Change these keys of a section."""
        now = self.read()
        self.whole({**now, section: {**now.get(section, {}), **keys}})

    def models(self, *models: dict[str, Any]) -> None:
        """Let these be the models."""
        self.whole({**self.read(), "models": list(models)})

    def text(self, text: str) -> None:
        """Write this in its place."""
        new = self._path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self._path)

    def back(self) -> None:
        """As it was at first."""
        self.whole(self._first)

    def whole(self, whole: dict[str, Any]) -> None:
        """Let it say this and nothing else."""
        self.text(yaml.safe_dump(whole, sort_keys=False))


async def said(stack: Stack, part: str, services: Sequence[str]) -> None:
    """Wait until each of these processes has printed it."""

    def silent() -> list[str]:
        return [name for name in services if part not in stack.output(name)]

    await wait_until(lambda: not silent(), f"{', '.join(services)} say {part!r}", timeout_s=20)
