"""``python -m tests.kit.cli_forks``: runs commands of the command line in forks, to save their imports.

Reads one JSON object a line (``words``, ``environ``, ``stdin``, ``columns``: of a pseudo-terminal, null for
plain files) and answers one (``code``, ``out``, ``err``) each.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import importlib
import json
import os
import pty
import signal
import struct
import sys
import tempfile
import termios
import traceback
from typing import IO, Any

from services.cli.app import main

_ALARM_S = 40
_ROWS = 50
_PRELOADED = (
    "rich.live", "rich.progress", "rich.table", "shared.config", "shared.store.client",
    "shared.store.streams", "typer.rich_utils", "yaml",
)  # fmt: skip


def serve() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    answers = os.dup(1)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _on_files(asked) if asked["columns"] is None else _on_terminal(asked)
        os.write(answers, json.dumps(answer).encode() + b"\n")


def _on_files(asked: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(base64.b64decode(asked["stdin"]))
        given.seek(0)
        child = os.fork()
        if child == 0:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            _run(asked)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {"code": code, "out": _text(out), "err": _text(err)}


def _on_terminal(asked: dict[str, Any]) -> dict[str, Any]:
    child, controller = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, asked["columns"], 0, 0))
        _run(asked)
    shown = b"".join(iter(lambda: _chunk(controller), b""))
    os.close(controller)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "out": shown.decode().replace("\r\n", "\n"), "err": ""}


def _run(asked: dict[str, Any]) -> None:
    """In the child: one command, then the end of the process."""
    signal.alarm(_ALARM_S)
    os.environ.clear()
    os.environ.update(asked["environ"])
    # Those of the parent know whether its own files can be sought in.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in enumerate(("r", "w", "w"))
    )
    code: Any = 1
    try:
        main(asked["words"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _chunk(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except OSError as error:
        # How Linux says that nobody has the other end open any more.
        if error.errno != errno.EIO:
            raise
        return b""


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


if __name__ == "__main__":
    serve()
