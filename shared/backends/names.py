"""The addresses of backends that are given by name, looked up once for many calls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from time import monotonic

KNOWN_S = 30.0
"""How long a name's addresses are not looked up again."""
Lookup = Callable[[str, int], Awaitable[list[str]]]


async def look_up(host: str, port: int) -> list[str]:
    """The IP addresses of a name, as the machine resolves it; raises ``OSError`` where there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(_written(address) for *_, address in found))


class Names:
    """Known names. One lookup serves all that ask for the same name meanwhile."""

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._known: dict[str, tuple[float, list[str]]] = {}
        self._asking: dict[str, asyncio.Task[list[str]]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where to try, the one that answered last first; raises ``OSError``."""
        known = self._known.get(host)
        if known is not None and monotonic() - known[0] < KNOWN_S:
            return known[1]
        asking = self._asking.get(host)
        if asking is None:
            asking = self._asking[host] = asyncio.create_task(self._ask(host, port))
            asking.add_done_callback(lambda task: self._asked(host, task))
        return await asyncio.shield(asking)

    def answered(self, host: str, address: str) -> None:
        """A connection to this address of the name came about."""
        _, known = self._known.get(host, (0.0, []))
        if address in known and known[0] != address:
            known.remove(address)
            known.insert(0, address)

    def failed(self, host: str) -> None:
        """None of its addresses could be reached: they may have changed."""
        self._known.pop(host, None)

    def close(self) -> None:
        """Wait for no answer any more."""
        for asking in self._asking.values():
            asking.cancel()

    async def _ask(self, host: str, port: int) -> list[str]:
        before = self._known.get(host, (0.0, []))[1]
        found = await self._lookup(host, port)
        # An address that answered before is the best guess among the same ones.
        found.sort(key=lambda address: address not in before[:1])
        self._known[host] = (monotonic(), found)
        return found

    def _asked(self, host: str, task: asyncio.Task[list[str]]) -> None:
        self._asking.pop(host, None)
        if not task.cancelled():
            task.exception()  # whoever waits is told


def _written(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    """An address of the own link says at which of our interfaces it is."""
    host = str(address[0])
    return f"{host}%{address[3]}" if len(address) == 4 and address[3] and "%" not in host else host
