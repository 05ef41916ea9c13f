"""What follows from a value that never changes, worked out once for all who ask."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

Memo = dict[Hashable, object]
_Found = TypeVar("_Found")
_NOTHING = object()
_LASTING = "lasting"


def once(memo: Memo, name: Hashable, make: Callable[[], _Found]) -> _Found:
    """What ``make`` answers, called the first time only; None is an answer too."""
    known = memo.get(name, _NOTHING)
    if known is _NOTHING:
        known = memo[name] = make()
    return cast(_Found, known)  # a name stands for one kind of answer


def lasting(memo: Memo) -> Memo:
    """The part of a memo that ``hand_on`` hands on."""
    return once(memo, _LASTING, dict)


def hand_on(memo: Memo, successor: Memo) -> None:
    """Share the lasting part with a value that differs in nothing on which it stands."""
    successor[_LASTING] = lasting(memo)
