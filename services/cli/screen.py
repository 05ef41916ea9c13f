"""Where a command's output goes: a terminal with tables and colour, a pipe, or JSON for a script."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from services.cli.blocks import (
    Block,
    Cell,
    Fields,
    Note,
    Prose,
    Table,
    Tone,
    fitting,
    one_line,
    plain,
    printable,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_STYLES = {
    Tone.PLAIN: "",
    Tone.GOOD: "green",
    Tone.WARNING: "yellow",
    Tone.BAD: "bold red",
    Tone.FAINT: "dim",
}


class Progress(Protocol):
    """Something that is under way: says where it stands."""

    def __call__(self, text: str, share: float | None = None) -> None: ...


class Screen:
    """Standard output as one command uses it, and standard error for what is no part of the answer."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() and not as_json

    def show(self, body: Any, *blocks: Block) -> None:
        """The answer: ``body`` as one JSON document where that was asked for, else the blocks."""
        if self.as_json:
            self.document(body)
        elif self.terminal:
            _print(console(), blocks)
        else:
            sys.stdout.write(plain(blocks))

    def document(self, body: Any) -> None:
        """One JSON document, indented for a person and on one line for a script."""
        indent = 2 if sys.stdout.isatty() else None
        sys.stdout.write(json.dumps(body, ensure_ascii=False, indent=indent) + "\n")

    def again(self, body: Any, *blocks: Block) -> None:
        """One answer of several: a JSON object on a line, or the blocks with an empty line below."""
        sys.stdout.write(
            json.dumps(body, ensure_ascii=False) + "\n" if self.as_json else f"{plain(blocks)}\n"
        )
        sys.stdout.flush()

    def line(self, body: Any, *cells: Cell) -> None:
        """One more line of something that goes on: a JSON object, or cells beside each other."""
        if self.as_json:
            sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
        elif self.terminal:
            console().print(_joined(cells), soft_wrap=True)
        else:
            sys.stdout.write("  ".join(one_line(cell.text) for cell in cells).rstrip() + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A hint for a person who looks on; a script gets none."""
        if self.terminal and sys.stderr.isatty():
            console(stderr=True).print(_text(Cell(text, Tone.FAINT)), soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A line on a terminal's stderr that moves while something is under way, and goes when it ends."""
        if not (self.terminal and sys.stderr.isatty()):
            yield _silent
            return
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        parts = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=30))
        bar = Bar(*parts, console=console(stderr=True), transient=True)
        task = bar.add_task("", start=False, total=None)

        def update(text: str, share: float | None = None) -> None:
            # Only now: what fails at once leaves nothing but its own line.
            bar.start()
            total = None if share is None else 1.0
            bar.update(task, description=one_line(text), completed=share or 0.0, total=total)

        try:
            yield update
        finally:
            bar.stop()


def console(*, stderr: bool = False) -> Console:
    """A terminal as rich writes to it; without any escape sequence for colour under ``NO_COLOR``."""
    from rich.console import Console

    colour = not os.environ.get("NO_COLOR")
    return Console(
        stderr=stderr, color_system="auto" if colour else None, highlight=False, markup=False, emoji=False
    )


def rendered(blocks: Sequence[Block], width: int) -> RenderableType:
    """The blocks as rich draws them on a terminal of ``width`` characters."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for block in blocks:
        if parts:
            parts.append(Text())
        parts.append(_renderable(block, width))
    return Group(*parts)


def _print(target: Console, blocks: Sequence[Block]) -> None:
    target.print(rendered(blocks, target.width))


def _silent(text: str, share: float | None = None) -> None:
    """Nobody looks on."""
    del text, share


def _renderable(block: Block, width: int) -> RenderableType:
    from rich.text import Text

    match block:
        case Table():
            return _table(block, width)
        case Fields():
            return _fields(block)
        case Note():
            return _text(block.cell)
        case Prose():
            return Text(printable(block.text))


def _table(table: Table, width: int) -> RenderableType:
    from rich import box
    from rich.table import Table as Drawn

    if not table.rows:
        return _text(Cell(f"{table.title}: {table.empty}" if table.title else table.empty, Tone.FAINT))
    table = fitting(table, width)
    drawn = Drawn(
        box=box.SIMPLE_HEAD,
        title=table.title or None,
        title_justify="left",
        header_style="bold",
        pad_edge=False,
        show_edge=False,
    )
    for column in table.columns:
        drawn.add_column(column.name, justify="right" if column.right else "left", overflow="fold")
    for cells in table.rows:
        drawn.add_row(*map(_text, cells))
    return drawn


def _fields(block: Fields) -> RenderableType:
    from rich.table import Table as Drawn

    drawn = Drawn.grid(padding=(0, 2))
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    if block.title:
        drawn.title, drawn.title_justify = block.title, "left"
    for name, cell in block.pairs:
        drawn.add_row(name, _text(cell))
    return drawn


def _text(cell: Cell) -> Text:
    from rich.text import Text

    return Text(one_line(cell.text), style=_STYLES[cell.tone])


def _joined(cells: Sequence[Cell]) -> Text:
    from rich.text import Text

    return Text("  ").join(_text(cell) for cell in cells)


def watched(looks: Iterator[Sequence[Block]]) -> None:
    """On a terminal: each look in the place of the one before, until Ctrl-C."""
    from rich.live import Live

    target = console()
    # Before the screen is cleared: what fails at once leaves nothing but its own line.
    first = rendered(next(looks), target.width)
    with Live(first, console=target, screen=True, auto_refresh=False) as live:
        for blocks in looks:
            live.update(rendered(blocks, target.width), refresh=True)
