"""``jobs``: the newest jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.client import open_api
from services.cli.command import Command
from services.cli.job_view import job_table, now_ms
from services.cli.options import AsJson, Url
from services.cli.screen import Screen
from shared.states import JobState


def jobs(
    state: Annotated[JobState | None, typer.Option("--state", "-s", help="Only jobs in this state.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, metavar="N", help="At most so many.")
    ] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    body = open_api(url).get("/v1/jobs", {"state": state and state.value, "limit": limit})
    Screen(as_json=as_json).show(body, job_table(body["jobs"], now_ms()))


COMMAND = Command(
    name="jobs",
    run=jobs,
    summary="List the newest jobs.",
    examples=("jobs", "jobs --state failed --limit 5", "jobs --json"),
)
