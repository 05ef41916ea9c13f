"""Ids that nobody can guess, without a call to the kernel for each."""

from __future__ import annotations

import os

_BYTES = 16
_AT_ONCE = 256
_left: list[str] = []
os.register_at_fork(after_in_child=_left.clear)


def random_id() -> str:
    """128 bits from the kernel's generator as 32 hex digits."""
    try:
        return _left.pop()
    except IndexError:
        drawn = os.urandom(_BYTES * _AT_ONCE).hex()
        digits = 2 * _BYTES
        _left.extend(drawn[at : at + digits] for at in range(digits, len(drawn), digits))
        return drawn[:digits]
