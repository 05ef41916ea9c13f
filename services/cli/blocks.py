"""What a command shows, as data, and how it looks in a pipe: aligned text without colour or boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

GAP = "  "
_TERMINAL_GAP = 3
_WRAPPED_WIDTH = 24
"""The least that a column of sentences needs to be read with ease."""


class Tone(StrEnum):
    """How a value is meant; a terminal gives each a colour."""

    PLAIN = "plain"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    FAINT = "faint"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value as text."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; numbers stand on the right.

    Where a terminal is too narrow an ``optional`` column is left out, and one that ``wraps`` is broken.
    """

    name: str
    right: bool = False
    optional: bool = False
    wraps: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of as many cells as there are columns; ``empty`` is said where there are none."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    empty: str = "none"


@dataclass(frozen=True, slots=True)
class Fields:
    """Names and values of one thing."""

    pairs: tuple[tuple[str, Cell], ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class Prose:
    """A text of several lines that keeps its breaks, such as what a model wrote."""

    text: str


Block = Table | Fields | Note | Prose


def columns(*names: str) -> tuple[Column, ...]:
    """Columns by name, with marks behind it: ``>`` on the right, ``?`` optional, ``~`` wraps."""
    return tuple(Column(name.rstrip(">?~"), ">" in name, "?" in name, "~" in name) for name in names)


def row(*values: str | Cell) -> tuple[Cell, ...]:
    return tuple(value if isinstance(value, Cell) else Cell(value) for value in values)


def fields(*pairs: tuple[str, str | Cell], title: str = "") -> Fields:
    """Those of the pairs that have a value."""
    cells = ((name, value if isinstance(value, Cell) else Cell(value)) for name, value in pairs)
    return Fields(tuple((name, cell) for name, cell in cells if cell.text), title)


def printable(text: str) -> str:
    """A text without control characters, which could steer the terminal; line breaks and tabs stay."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def fitting(table: Table, width: int) -> Table:
    """The table as a terminal of ``width`` characters shows it.

    Columns without any value are left out, then optional ones from the right until the rest fits.
    """
    kept = [
        index
        for index, column in enumerate(table.columns)
        if not (column.wraps or column.optional) or any(cells[index].text for cells in table.rows)
    ]
    optional = [index for index in kept if table.columns[index].optional]
    while optional and _width(table, kept) > width:
        kept.remove(optional.pop())
    return Table(
        tuple(table.columns[index] for index in kept),
        tuple(tuple(cells[index] for index in kept) for cells in table.rows),
        table.title,
        table.empty,
    )


def _width(table: Table, kept: Sequence[int]) -> int:
    """Characters that these columns take, a gap behind each but the last."""
    widths = 0
    for index in kept:
        column = table.columns[index]
        longest = max(len(text) for text in (column.name, *(cells[index].text for cells in table.rows)))
        widths += min(longest, _WRAPPED_WIDTH) if column.wraps else longest
    return widths + _TERMINAL_GAP * (len(kept) - 1)


def plain(blocks: Iterable[Block]) -> str:
    """The blocks as a pipe gets them, one empty line between two, with a last line break."""
    return "\n".join("".join(f"{line}\n" for line in _lines(block)) for block in blocks)


def _lines(block: Block) -> list[str]:
    match block:
        case Table():
            return _table(block)
        case Fields():
            return _titled(block.title, _aligned([(name, cell.text) for name, cell in block.pairs]))
        case Note():
            return [one_line(block.cell.text)]
        case Prose():
            # A pipe gets what was written, to the byte.
            return [block.text]


def _table(table: Table) -> list[str]:
    if not table.rows:
        return _titled(table.title, [table.empty])
    heading = [column.name for column in table.columns]
    texts = [heading, *([cell.text for cell in cells] for cells in table.rows)]
    return _titled(table.title, _aligned(texts, [column.right for column in table.columns]))


def _titled(title: str, lines: list[str]) -> list[str]:
    return [title, *lines] if title else lines


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    shown = [[one_line(text) for text in texts] for texts in rows]
    widths = [max(map(len, texts)) for texts in zip(*shown, strict=True)]
    sides = right or [False] * len(widths)
    return [
        GAP.join(
            text.rjust(width) if side else text.ljust(width)
            for text, width, side in zip(texts, widths, sides, strict=True)
        ).rstrip()
        for texts in shown
    ]
