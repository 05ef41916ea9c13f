"""Ports for what tests start: none that the kernel gives to connections, none that is handed out twice."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path

_FIRST = 10_000
_BLOCK = 1_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL = 32_768


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nothing listens on, all different; they come again after a thousand others.

    A port that the kernel chose and got back is soon chosen again, by another test or for the near end of a
    connection, before the server that it is meant for has started.
    """
    candidates = _candidates()
    found: list[int] = []
    for _ in range(_BLOCK):
        if len(found) == count:
            return found
        port = next(candidates)
        with socket.socket() as one:
            if _bound(one, port):
                found.append(port)
    raise AssertionError(f"no {count} of the {_BLOCK} ports around {port} are free")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


@cache
def _candidates() -> Iterator[int]:
    """The ports of this process's own block: its first one stays bound, as a sign to other test runs."""
    blocks = list(range(_FIRST, _ephemeral() - _BLOCK, _BLOCK))
    random.SystemRandom().shuffle(blocks)
    for first in blocks:
        with socket.socket() as sign:
            if _bound(sign, first):
                sign.detach()  # until this process ends
                return cycle(range(first + 1, first + _BLOCK))
    raise AssertionError(f"each of the blocks of ports from {_FIRST} on is in use")


def _bound(one: socket.socket, port: int) -> bool:
    try:
        one.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _ephemeral() -> int:
    """The first port that the kernel may choose by itself; where that leaves no room, its usual one."""
    low = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else _USUAL_EPHEMERAL
    return low if low >= _FIRST + 2 * _BLOCK else _USUAL_EPHEMERAL
