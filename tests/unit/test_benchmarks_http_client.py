"""The benchmark of our HTTP client runs and tells its calls apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.kit.fake_nvml import require_compiler

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_has_a_row_for_every_kind_of_call() -> None:
    require_compiler()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http_client", "--quick"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| new", "| kept"))]
    assert len(rows) == 8
