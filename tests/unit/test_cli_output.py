"""How the command line shows things: aligned in a pipe, drawn on a terminal, never with a secret."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from services.cli.blocks import (
    Block,
    Cell,
    Note,
    Prose,
    Table,
    Tone,
    columns,
    fields,
    fitting,
    one_line,
    plain,
    printable,
    row,
)
from services.cli.masking import masked_tree
from services.cli.screen import rendered
from services.cli.wording import age, between, span, toned
from shared.masking import masked

_TABLE = Table(
    columns("MODEL", "GB>", "BACKEND?", "ERROR~"),
    (row("alpha", "2.0", "llama_cpp", ""), row("beta", "16.0", "vllm", "does not\nanswer")),
    title="models",
)


def drawn(blocks: Sequence[Block], width: int = 80, *, colour: bool = False) -> str:
    """What a terminal of so many characters shows."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=True, color_system="standard" if colour else None,
        legacy_windows=False, highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    console.print(rendered(blocks, width))
    return file.getvalue()


def test_a_table_in_a_pipe_is_aligned_and_has_nothing_behind_its_last_word() -> None:
    assert plain([_TABLE]) == (
        "models\n"
        "MODEL    GB  BACKEND    ERROR\n"
        "alpha   2.0  llama_cpp\n"
        "beta   16.0  vllm       does not answer\n"
    )


def test_blocks_in_a_pipe_have_an_empty_line_between_them() -> None:
    blocks: list[Block] = [
        Note(Cell("two jobs wait", Tone.WARNING)),
        fields(("job", "j-1"), ("error", ""), ("state", toned("dead"))),
        Table(columns("A"), (), empty="no jobs"),
        Prose("first\n  second"),
    ]
    assert plain(blocks) == "two jobs wait\n\njob    j-1\nstate  dead\n\nno jobs\n\nfirst\n  second\n"


def test_a_table_on_a_terminal_is_drawn_with_its_heading() -> None:
    shown = [line.rstrip() for line in drawn([_TABLE]).splitlines()]
    assert shown == [
        "models",
        "MODEL     GB   BACKEND     ERROR",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 42,
        "alpha    2.0   llama_cpp",
        "beta    16.0   vllm        does not answer",
    ]
    assert drawn([Table(columns("A"), (), empty="no jobs")]).rstrip() == "no jobs"


def test_tones_are_colours_and_no_colour_is_no_escape_sequence() -> None:
    note = [Note(toned("dead"))]
    assert drawn(note, colour=True) == "\x1b[1;31mdead\x1b[0m\n"
    assert drawn(note) == "dead\n"


def test_what_a_model_wrote_cannot_steer_the_terminal_nor_be_taken_for_markup() -> None:
    nasty = "\x1b[2Jred [bold]x[/bold] \x07\x9b1m\n\tend"
    assert printable(nasty) == "\ufffd[2Jred [bold]x[/bold] \ufffd\ufffd1m\n\tend"
    assert one_line(nasty) == "\ufffd[2Jred [bold]x[/bold] \ufffd\ufffd1m end"
    shown = drawn([Prose(nasty), Note(Cell(nasty)), Table(columns("A"), (row(nasty),))], colour=True)
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert shown.count("[bold]x[/bold]") == 3
    assert plain([Prose(nasty)]) == f"{nasty}\n"


def test_a_narrow_terminal_leaves_out_what_is_optional_and_what_has_no_value() -> None:
    assert [column.name for column in fitting(_TABLE, 80).columns] == ["MODEL", "GB", "BACKEND", "ERROR"]
    narrow = fitting(_TABLE, 38)
    assert [column.name for column in narrow.columns] == ["MODEL", "GB", "ERROR"]
    assert [[cell.text for cell in cells] for cells in narrow.rows] == [
        ["alpha", "2.0", ""],
        ["beta", "16.0", "does not\nanswer"],
    ]
    healthy = Table(_TABLE.columns, _TABLE.rows[:1])
    assert [column.name for column in fitting(healthy, 80).columns] == ["MODEL", "GB", "BACKEND"]
    assert [column.name for column in fitting(_TABLE, 1).columns] == ["MODEL", "GB", "ERROR"]


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (None, "-"), (0, "0 ms"), (999.4, "999 ms"), (1500, "1.5 s"), (59_949, "59.9 s"),
        (61_000, "1 min 1 s"), (3_599_000, "59 min 59 s"), (7_260_000, "2 h 1 min"),
    ],
)  # fmt: skip
def test_a_span_is_told_in_the_unit_that_suits_it(ms: float | None, words: str) -> None:
    assert span(ms) == words


def test_an_age_is_never_negative_where_clocks_differ() -> None:
    assert age(2000, 1000) == "0 ms"
    assert age(None, 1000) == "-"


def test_a_forecast_has_its_interval_only_where_there_is_one() -> None:
    assert between(1.04, 2.0, 3.0) == "2.0 (1.0 to 3.0)"
    assert between(None, 2.0, None) == "2.0"
    assert between(None, None, None) == "-"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:secret@10.0.0.2:6379/0", "redis://***@10.0.0.2:6379/0"),
        ("'rediss://me:se/cr@et@host'", "'rediss://***@host'"),
        (":secret@host", "***@host"),
        ("redis://me@host:1 http://127.0.0.1:8000/x", "redis://me@host:1 http://127.0.0.1:8000/x"),
        ("redis://host/0?password=secret&db=1", "redis://host/0?password=***&db=1"),
        ("serve --api-key secret --port 1", "serve --api-key *** --port 1"),
        ("serve --hf-token=secret", "serve --hf-token=***"),
    ],
)
def test_passwords_and_keys_are_taken_out_of_a_text(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


def test_secrets_of_a_tree_are_found_by_the_name_of_their_key() -> None:
    tree: dict[str, Any] = {
        "jobs": {"max_tokens": 512},
        "models": [{"api_key_env": "NAME", "url": "http://h:1"}],
        "keys": [{"name": "ann", "hash": "abc", "secret": None}],
        "redis": {"password": 5},
        "api_keys": ["a", "b"],
    }
    assert masked_tree(tree) == {
        **tree,
        "keys": [{"name": "ann", "hash": "***", "secret": None}],
        "redis": {"password": "***"},
        "api_keys": ["***", "***"],
    }
