"""Which processes on the GPUs belong to which server of this host, as /proc tells.

GPU memory mostly belongs to a child of the process that listens (vLLM's engine, a router's instances), so
the way goes from a process on the GPU up through its ancestors to one that holds the listening socket. Only
those few processes are looked at. What can't be seen (other users' processes, other pid namespaces) matches
nothing: unknown, never zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from loguru import logger

from shared.gpu.thread import call_in_daemon_thread, ended

AGAIN_S = 5.0
"""A server that begins to listen later is found within this time, where nothing else changed."""
_PATIENCE_S = 0.5
_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_LISTEN = "0A"
_SOCKET = "socket:["
_MOST_ANCESTORS = 32
_VLLM_PORT = 8000


@dataclass(frozen=True, slots=True)
class Server:
    """A port of this host that a registration names. ``vllm``: its port is shut while it loads."""

    port: int
    vllm: bool


Owners = Mapping[Server, frozenset[int]]
"""For each server its processes on the GPUs; one that has none is left out."""


class Ownership:
    """Looks again when the processes or the servers are others, or after ``AGAIN_S``."""

    def __init__(self) -> None:
        self._asked: tuple[frozenset[int], frozenset[Server]] | None = None
        self._looked_at = 0.0
        self._pending: Future[dict[Server, frozenset[int]]] | None = None
        self._owners: Owners = {}

    async def of(self, pids: Collection[int], servers: Collection[Server]) -> Owners:
        """The owners as last seen; /proc of a process that hangs can hang too: that is waited for once."""
        asked = frozenset(pids), frozenset(servers)
        due = asked != self._asked or time.monotonic() - self._looked_at >= AGAIN_S
        if self._pending is None and due:
            self._asked, self._looked_at = asked, time.monotonic()
            self._pending = call_in_daemon_thread(lambda: find_owners(*asked), "proc")
            await ended(self._pending, _PATIENCE_S)
        if self._pending is not None and self._pending.done():
            self._owners, self._pending = self._pending.result(), None
        return self._owners


def find_owners(pids: Collection[int], servers: Collection[Server]) -> dict[Server, frozenset[int]]:
    """Match processes on the GPUs with servers by what the processes and their ancestors hold."""
    if not pids or not servers:
        return {}
    inodes = _listening({server.port for server in servers})
    found: dict[Server, set[int]] = {}
    for pid in pids:
        for ancestor in _with_ancestors(pid):
            sockets = _sockets(ancestor)
            ports = {inodes[inode] for inode in sockets & inodes.keys()}
            words = _words(ancestor)
            for server in servers:
                if server.port in ports or (server.vllm and _starts_vllm(words, server.port)):
                    found.setdefault(server, set()).add(pid)
    return {server: frozenset(owned) for server, owned in found.items()}


def _listening(ports: Collection[int]) -> dict[str, int]:
    """Inode -> port of the sockets that listen on these ports."""
    inodes = {}
    for table in _TABLES:
        for line in _read(table).splitlines()[1:]:
            columns = line.split()
            if len(columns) > 9 and columns[3] == _LISTEN:
                port = int(columns[1].rpartition(":")[2], 16)
                if port in ports:
                    inodes[columns[9]] = port
    return inodes


def _with_ancestors(pid: int) -> Iterator[int]:
    """The process, its parent and so on, without init."""
    for _ in range(_MOST_ANCESTORS):
        if pid <= 1:
            return
        yield pid
        # The name in parentheses may hold anything, so the fields are counted from its end.
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0


def _sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds, empty where it may not be looked at."""
    directory = f"/proc/{pid}/fd"
    try:
        targets = [_target(f"{directory}/{number}") for number in os.listdir(directory)]
    except OSError as error:
        logger.debug("the sockets of process {} can't be seen: {}", pid, error.strerror)
        return set()
    return {target[len(_SOCKET) : -1] for target in targets if target.startswith(_SOCKET)}


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed since it was listed
        return ""


def _words(pid: int) -> list[str]:
    return _read(f"/proc/{pid}/cmdline").split("\0")


def _starts_vllm(words: list[str], port: int) -> bool:
    """Whether this command line starts vLLM on that port: its port opens only once it has loaded."""
    if not any(word.startswith("vllm.entrypoints") for word in words) and not (
        "serve" in words and any(word.rpartition("/")[2] == "vllm" for word in words)
    ):
        return False
    named = [
        word.removeprefix("--port=") if word.startswith("--port=") else following
        for word, following in zip(words, [*words[1:], ""], strict=True)
        if word == "--port" or word.startswith("--port=")
    ]
    return str(port) in named if named else port == _VLLM_PORT


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
