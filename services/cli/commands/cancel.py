"""``cancel``: end a job before its time."""

from __future__ import annotations

from services.cli.blocks import Note
from services.cli.client import open_api, path_of
from services.cli.command import Command
from services.cli.options import AsJson, JobId, Url
from services.cli.screen import Screen
from services.cli.wording import toned

_REQUESTED = 202


def cancel(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    answer = open_api(url).call("DELETE", path_of("v1", "jobs", job_id))
    state = "runs: its router was asked to stop it" if answer.status == _REQUESTED else "is cancelled"
    Screen(as_json=as_json).show(answer.body, Note(toned(f"job {job_id} {state}")))


COMMAND = Command(
    name="cancel",
    run=cancel,
    summary="Cancel a job.",
    more="At once while it waits, by request while it runs.",
    examples=("cancel j-123",),
)
