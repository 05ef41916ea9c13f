"""The command line as a process: in a pipe, on a pseudo-terminal, and against a stand-in for the api."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.kit.stack import ROOT

PROGRAM = (sys.executable, "-m", "services.cli")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Ended:
    """How a command ended; on a terminal both outputs are one."""

    code: int
    out: str
    err: str = ""

    @property
    def document(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)


def environment(**changes: str) -> dict[str, str]:
    """An environment without anybody's settings, on a terminal that knows colours."""
    kept = {
        name: it for name, it in os.environ.items() if not name.startswith("ORCH_") and name != "NO_COLOR"
    }
    return {**kept, "TERM": "xterm-256color", **changes}


class Commands:
    """Runs commands one after the other; made for many of them, since each costs no more than a fork."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.cli_forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def close(self) -> None:
        self._process.communicate()

    def piped(self, *words: str, environ: Mapping[str, str], stdin: bytes = b"") -> Ended:
        """One command whose output is no terminal."""
        return self._run(words, environ, None, stdin)

    def on_terminal(self, *words: str, environ: Mapping[str, str], columns: int = 160) -> Ended:
        """One command on a pseudo-terminal of so many columns."""
        return self._run(words, environ, columns)

    def _run(
        self, words: Sequence[str], environ: Mapping[str, str], columns: int | None, stdin: bytes = b""
    ) -> Ended:
        asked = {
            "words": list(words),
            "environ": dict(environ),
            "columns": columns,
            "stdin": base64.b64encode(stdin).decode(),
        }
        wire = self._process
        assert wire.stdin is not None
        assert wire.stdout is not None
        with self._turn:
            wire.stdin.write(json.dumps(asked).encode() + b"\n")
            wire.stdin.flush()
            return Ended(**json.loads(wire.stdout.readline()))


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """The command line, ready to run any number of commands."""
    commands = Commands()
    yield commands
    commands.close()


def process(*words: str, environ: Mapping[str, str]) -> Ended:
    """One command as a process of its own, with pipes."""
    ended = subprocess.run(
        [*PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environ,
        timeout=_TIMEOUT_S,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


@dataclass
class StandIn:
    """An HTTP server that answers whatever it is told, and keeps what it was asked."""

    status: int = 200
    content_type: str = "application/json"
    body: bytes = b"{}"
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method with path, and the Authorization header."""


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running ``StandIn``, for what a real api can't be brought to answer."""
    answer = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.asked.append((f"GET {self.path}", self.headers.get("Authorization", "")))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        answer.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield answer
        server.shutdown()
        thread.join()


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)
