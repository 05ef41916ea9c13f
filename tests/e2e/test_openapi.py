"""Every operation of the OpenAPI document, tried by schemathesis on a whole stack."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.configs import simulated_config
from tests.kit.stack import ROOT, Json, Stack, running_stack

_SERVICES = ("simulator", "monitor", "router", "api")
_EXAMPLES = 5
"""Of each operation and phase, besides those that cover every bound of every field."""


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    """A job that no model can take ends soon, so that nothing waits for it."""
    config = simulated_config(jobs={"deadline_s": 2})
    async with running_stack(tmp_path, redis_url, config, _SERVICES) as stack:
        yield stack


async def _schemathesis(directory: Path, url: str, *options: str) -> tuple[int, str, Json]:
    """Try an api; exit status, what was printed, and the report of the run."""
    report = directory / "report.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "tests/e2e/openapi.toml")),
        *("run", f"{url}/openapi.json", "--report-json-path", str(report), *options),
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    told: Json = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return process.returncode or 0, printed.decode(errors="replace"), told


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_every_operation_answers_as_the_openapi_document_says(stack: Stack, tmp_path: Path) -> None:
    """No 500, no status, header, type or body that is not declared, nothing wrong taken, 405 with Allow."""
    async with stack.http.get(f"{stack.api}/openapi.json") as answer:
        paths = (await answer.json())["paths"]

    status, printed, report = await _schemathesis(
        tmp_path, stack.api, "--generation-deterministic", "--max-examples", str(_EXAMPLES)
    )

    assert status == 0, printed
    assert report["operations"]["tested"] == sum(len(calls) for calls in paths.values()), printed
    assert "Traceback" not in stack.output("api")
    async with stack.http.get(f"{stack.api}/readyz") as answer:
        assert answer.status == 200, await answer.text()
