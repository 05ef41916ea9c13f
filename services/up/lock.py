"""One supervisor per directory: a second one would write over what the first one's children read."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from services.up.ports import CannotStart


def take(directory: Path) -> TextIO:
    """Create the directory where there is none and hold it until the returned file is closed.

    The kernel lets go of it when the holder ends, however that happens, so no lock outlives its process.
    Raises ``CannotStart``: another process holds it (named by its id), or a path cannot be used.
    """
    path = (directory / "up.lock").absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")
    except OSError as error:
        raise CannotStart(f"{error.filename or path} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except BlockingIOError:
        with file:
            holder = file.read(20).strip() or "unknown"
        raise CannotStart(
            f"{directory.absolute()} is in use by another `make up` (pid {holder}): "
            "stop it first, or start this one in another directory"
        ) from None
    except OSError as error:
        file.close()
        raise CannotStart(f"{path} cannot be locked: {error.strerror}") from None
    return file
