"""How much memory the requests of this api hold, so that it refuses one before it dies of it."""

from __future__ import annotations

from typing import Self

from services.api.gateway import refusals

_MOST_HELD_BYTES = 512 * 2**20
"""Of requests that wait or run here: their bodies are nowhere else, and no process may die of them."""
_VALUE_BYTES = 80
"""What a parsed value costs beside its text: 8 MB of ``{},`` took 200 MB, 75 bytes for each of them."""
_MARKS = (b"{", b"[", b",")
"""What begins a value in JSON, or stands between two."""


class Room:
    """What all requests together hold."""

    def __init__(self) -> None:
        self.held_bytes = 0

    def share(self) -> Share:
        """What one request holds, given back at its end."""
        return Share(self)


class Share:
    """What one request holds while it is entered."""

    __slots__ = ("_room", "held_bytes")

    def __init__(self, room: Room) -> None:
        self._room = room
        self.held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.held_bytes -= self.held_bytes

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more; raises ``Refusal`` (503, or 413 where coming again would not help)."""
        if self.held_bytes + size > _MOST_HELD_BYTES:
            raise refusals.too_much_alone(_MOST_HELD_BYTES)
        if self._room.held_bytes + size > _MOST_HELD_BYTES:
            raise refusals.too_much_held(self._room.held_bytes - self.held_bytes)
        self._room.held_bytes += size
        self.held_bytes += size

    def take_values(self, raw: bytes) -> None:
        """Hold what this JSON will be once it is parsed, as it may be at worst; raises as ``take``."""
        self.take(_VALUE_BYTES * sum(map(raw.count, _MARKS)))
