"""Where the lines of the log go: the terminal or whoever collects stderr, and a file that is bounded."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from errno import ENOSPC
from io import FileIO
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, TextIO

from shared.log_lines import Entry, entry_of, without_secrets

if TYPE_CHECKING:
    from loguru import Message

Render = Callable[[Entry], str]
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
        self._torn = False

    def write(self, line: str) -> None:
        """Append a line; it has left this process once this returns. Raises ``OSError`` where it can't."""
        raw = f"{line}\n".encode(errors="backslashreplace")
        if self._torn:
            raw = b"\n" + raw
        self._unlooked += len(raw)
        if self._unlooked >= self._look_every:
            self._unlooked = 0
            # Its real size: others may write to it too.
            if os.fstat(self._file.fileno()).st_size >= self._most_bytes:
                self._turn()
        written = self._file.write(raw)
        # The last bytes of a disk take a part of a line; the next line begins one of its own.
        self._torn = 0 < written < len(raw) or (self._torn and not written)
        if written < len(raw):
            raise OSError(ENOSPC, os.strerror(ENOSPC))

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
        new = self._open()
        self._file.close()
        self._file = new


def _about(entry: Entry, message: str) -> Entry:
    """A warning about the log itself, which can't be logged while it is written."""
    return Entry(entry.at, "WARNING", entry.service, None, message, {})


class Lines:
    """Where every line goes, loguru's one sink; each format is made once, for all that have it."""

    def __init__(self, stream: TextIO, shown: Render, kept: Render, file: BoundedFile | None) -> None:
        self._stream = stream
        self._shown = shown
        self._kept = kept
        self._file = file
        self._file_fails = False
        # Of threads. In one and the same, the collector may log of what it finds while a line is written.
        self._turn = RLock()

    def write(self, message: Message) -> None:
        """Write what loguru hands over."""
        self.put(entry_of(message.record))

    def put(self, entry: Entry) -> None:
        """Write an entry wherever that is possible; whoever logs never hears of what is not."""
        try:
            clean = without_secrets(entry)
            shown = self._shown(clean)
            kept = shown if self._kept is self._shown else self._kept(clean)
        except Exception as error:  # of a value that can't be written; the entry itself may hold keys
            entry = _about(entry, f"a line can't be made of what was logged: {type(error).__name__}")
            shown, kept = self._shown(entry), self._kept(entry)
        with self._turn:
            self._keep(entry, kept)
            self._show(shown)

    def _keep(self, entry: Entry, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line)
        except OSError as error:
            if not self._file_fails:
                words = f"the log's file can't be written: {error.strerror}: logging to stderr only"
                self._show(self._shown(_about(entry, words)))
            self._file_fails = True
            return
        if self._file_fails:
            self._file_fails = False
            self._show(self._shown(_about(entry, "the log's file is written again")))

    def _show(self, line: str) -> None:
        # Nobody reads it any more, or it is closed: nobody is left to hear of it.
        with suppress(OSError, ValueError):
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except BrokenPipeError:
                # What it still holds would be written at the end, and the process end with an error.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def stop(self) -> None:
        """Loguru is done with this sink."""
        if self._file is not None:
            self._file.close()
