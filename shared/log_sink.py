"""Where the lines of the log go: the terminal or whoever collects stderr, and a file that is bounded."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from loguru import Message, Record

Render = Callable[["Record"], str]
MOST_BYTES = 10_000_000
"""Of a log file; one predecessor of that size stays beside it as ``<name>.1``."""


class BoundedFile:
    """A log file, open for appending; processes that share a name share the file."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        """Raises ``OSError`` where it cannot be written."""
        self._path = path
        self._most_bytes = most_bytes
        self._look_every = most_bytes // 100
        self._file = self._open()
        self._unlooked = self._look_every

    def write(self, line: str) -> None:
        """Append a line; it has left this process once this returns."""
        raw = f"{line}\n".encode(errors="backslashreplace")
        self._unlooked += len(raw)
        if self._unlooked >= self._look_every:
            self._unlooked = 0
            # Its real size: others may write to it too.
            if os.fstat(self._file.fileno()).st_size >= self._most_bytes:
                self._turn()
        self._file.write(raw)

    def close(self) -> None:
        self._file.close()

    def _open(self) -> FileIO:
        return FileIO(self._path, "a")

    def _turn(self) -> None:
        """Begin a new file, unless whoever else writes to this one has done so already."""
        ours = os.fstat(self._file.fileno())
        with suppress(FileNotFoundError):  # removed by hand: what is opened now is a new one
            if os.path.samestat(ours, self._path.stat()):
                self._path.replace(f"{self._path}.1")
        self._file.close()
        self._file = self._open()


class Lines:
    """Loguru's one sink: each format is made once, however many destinations have it."""

    def __init__(self, stream: TextIO, shown: Render, kept: Render, file: BoundedFile | None) -> None:
        self._stream = stream
        self._shown = shown
        self._kept = kept
        self._file = file

    def write(self, message: Message) -> None:
        record = message.record
        shown = self._shown(record)
        try:
            if self._file is not None:
                self._file.write(shown if self._kept is self._shown else self._kept(record))
        finally:
            self._stream.write(shown + "\n")
            self._stream.flush()

    def stop(self) -> None:
        """Loguru is done with this sink."""
        if self._file is not None:
            self._file.close()
