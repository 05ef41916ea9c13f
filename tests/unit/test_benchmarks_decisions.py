"""The benchmark of decisions runs and prints its tables; it does not judge the machine that it runs on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables() -> list[list[list[str]]]:
    """The rows of both tables of a quick run, without their headings."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decisions", "--quick"],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    blocks = re.findall(r"(?:^\|.*\n?)+", done.stdout, re.MULTILINE)
    return [
        [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
        for block in blocks
    ]


def test_every_kind_of_decision_is_timed_with_a_verdict(tables: list[list[list[str]]]) -> None:
    decisions, _ = tables
    assert len(decisions) == 4
    for _, p50, p99, verdict, *_ in decisions:
        assert 0 < float(p50) <= float(p99)
        assert verdict == ("yes" if float(p99) < 1 else "no")


def test_every_length_of_queue_is_timed_and_only_the_heads_are_read(tables: list[list[list[str]]]) -> None:
    _, passes = tables
    assert [row[:3] for row in passes] == [["20", "8", "20"], ["130", "8", "130"], ["130", "1", "60"]]
    for row in passes:
        parts, whole = [float(cell) for cell in row[3:7]], float(row[7])
        assert all(part >= 0 for part in parts)
        assert whole == pytest.approx(sum(parts), abs=0.25)
        assert row[8] == ("yes" if whole < 20 else "no")
