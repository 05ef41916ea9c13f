"""``job``: one job as it stands, or as it goes."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.client import Api, open_api, path_of
from services.cli.command import Command
from services.cli.follow import follow
from services.cli.job_view import event_cells, finish, job_blocks, now_ms, require_success
from services.cli.options import AsJson, JobId, Timeout, Url
from services.cli.screen import Screen


def job(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Its events as they happen, to its end.")
    ] = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    api, screen = open_api(url), Screen(as_json=as_json)
    if follow or timeout is not None:
        _follow(api, screen, job_id, timeout)
        return
    body = api.get(path_of("v1", "jobs", job_id))
    screen.show(body, *job_blocks(body, now_ms()))


def _follow(api: Api, screen: Screen, job_id: str, timeout_s: float | None) -> None:
    for event in follow(api, job_id, timeout_s):
        screen.line({"id": event.id, **event.fields}, *event_cells(event))
    ended = api.get(path_of("v1", "jobs", job_id))
    if screen.as_json:
        require_success(ended)
    else:
        finish(screen, ended)


COMMAND = Command(
    name="job",
    run=job,
    summary="Show one job, or follow it.",
    more="With --follow its events come one a line, then its answer.",
    examples=("job j-123", "job j-123 --follow", "job j-123 --follow --timeout 60 --json"),
)
