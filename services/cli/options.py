"""The options and arguments that several commands have, and what a shell completes them to."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.client import Api, Json, open_api
from shared.errors import OrchestratorError

_COMPLETION_S = 2.0


def _complete_model(incomplete: str) -> list[str]:
    models = _listed("/v1/gpu/models", "models")
    return [str(model["name"]) for model in models if str(model["name"]).startswith(incomplete)]


def _complete_job(incomplete: str) -> list[str]:
    jobs = _listed("/v1/jobs", "jobs")
    return [str(job["job_id"]) for job in jobs if str(job["job_id"]).startswith(incomplete)]


def _listed(path: str, name: str) -> list[Json]:
    try:
        api: Api = open_api(None)
        return list(api.get(path, silence_s=_COMPLETION_S)[name])
    except OrchestratorError:
        # A shell that completes has no place for a complaint; the command itself will make it.
        return []


Url = Annotated[
    str | None,
    typer.Option("--url", envvar="ORCH_API_URL", metavar="URL", help="The orchestrator to ask."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, for scripts.")]
JobId = Annotated[
    str, typer.Argument(metavar="ID", help="The job's id.", autocompletion=_complete_job, show_default=False)
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="The model's name.", autocompletion=_complete_model, show_default=False
    ),
]
AModel = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME", help="This model only.", autocompletion=_complete_model),
]
AgentType = Annotated[
    str | None, typer.Option("--agent-type", "-a", metavar="TYPE", help="Models that list this agent type.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Wait no longer than this; the job goes on."),
]
