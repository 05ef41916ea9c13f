"""Makes a script short: Redis runs its whole text at every call, shared definitions as well."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_WORD = re.compile(r"\w+")
_CONSTANT = re.compile(r"(?<![\w.])(?:(?:K|KEEP|STATE|EVENT)\.\w+|GROUP|RETENTION_MS|HISTORY_MS)\b")
_KEY_OF = re.compile(r"(?<![\w.])key\('(\w+)', ")
_DEFINES = re.compile(r"local (?:function )?(\w+(?:, \w+)*)")


def linked(shared: Sequence[str], script: str) -> str:
    """``script`` behind those definitions of the shared parts that it needs, in their order.

    A part is a series of top-level ``local`` definitions; anything else in it is kept.
    """
    used = words(script)
    kept: list[str] = []
    # Lua knows a local name only after its definition, so one pass from the end finds all that is needed.
    for block in reversed([block for part in shared for block in _blocks(part)]):
        names = _DEFINES.match(block)
        if names is None or used & set(names[1].split(", ")):
            used |= words(block)
            kept.append(block)
    return "\n".join([*reversed(kept), script])


def written_in(text: str, constants: Mapping[str, str | int], around: Callable[[str], Sequence[str]]) -> str:
    """``text`` with every constant as a literal, and for ``key('name', part)`` what is ``around`` the part.

    As tables they would be built anew at every call of the script. Raises ``KeyError`` for what is none.
    """

    def key_of(match: re.Match[str]) -> str:
        before, behind = around(match[1])
        return f"key({_literal(before)}, {_literal(behind)}, "

    text = _CONSTANT.sub(lambda match: _literal(constants[match[0]]), text)
    return _KEY_OF.sub(key_of, text)


def words(text: str) -> set[str]:
    """All names in a text, whether in code, strings or comments."""
    return set(_WORD.findall(text))


def _blocks(part: str) -> list[str]:
    """Top-level statements, each with the comments above it."""
    blocks: list[list[str]] = [[]]
    in_comment = False
    for line in part.splitlines():
        comment = line.startswith("--")
        begins = comment or line.startswith("local ") or (line[:1].isalpha() and line.strip() != "end")
        if begins and not in_comment:
            blocks.append([])
        in_comment = comment
        if line.strip() and not comment:
            blocks[-1].append(line)
    return ["\n".join(block) for block in blocks if block]


def _literal(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
