"""``submit``: hand in a job, and wait for its answer if asked to."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from services.cli.blocks import Note
from services.cli.client import Json, open_api
from services.cli.command import Command
from services.cli.failures import WrongUsage
from services.cli.follow import Event, wait_for_end
from services.cli.job_view import finish
from services.cli.options import AgentType, AModel, AsJson, Timeout, Url
from services.cli.screen import Screen
from services.cli.wording import toned
from shared.states import Mode


def submit(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The prompt; - reads it from standard input.")],
    agent_type: AgentType = None,
    model: AModel = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for the end and print the answer.")
    ] = False,
    timeout: Timeout = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Send it as a user's message, so that the model's template is used."),
    ] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="A system message before it; implies --chat."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", help="Longest output.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", metavar="N", help="0 to 9, 9 is most urgent.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="What it is tuned for.")] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", metavar="SECONDS", help="Drop it where it takes longer.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", metavar="X", help="Sampling.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of the sampling.")] = None,
    caller: Annotated[
        str | None, typer.Option("--caller", metavar="NAME", help="Whose turn it uses in the queue.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    given = _text(text)
    body: Json = {
        "agent_type": agent_type,
        "model": model,
        "max_tokens": max_tokens,
        "priority": priority,
        "mode": mode and mode.value,
        "deadline_s": deadline,
        "temperature": temperature,
        "seed": seed,
        "caller": caller,
        **_input(given, system, chat=chat),
    }
    api, screen = open_api(url), Screen(as_json=as_json)
    job = api.call("POST", "/v1/jobs", body={name: it for name, it in body.items() if it is not None}).body
    job_id = str(job["job_id"])
    if not (wait or timeout is not None):
        screen.show(job, Note(toned(job_id)))
        screen.note(f"{job['state']}; follow it with: gpu-orchestrator job {job_id} --follow")
        return
    with screen.progress() as progress:

        def seen(event: Event) -> None:
            progress(f"{event.type}: {event.fields.get('reason') or job_id}")

        progress(f"job {job_id} is {job['state']}")
        ended = wait_for_end(api, job_id, timeout, seen)
    finish(screen, ended)


def _text(given: str) -> str:
    # What a shell hands over that is no UTF-8 comes as half surrogate pairs, and is found here as well.
    raw = given.encode("utf-8", "surrogateescape") if given != "-" else sys.stdin.buffer.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"TEXT: is no UTF-8 text (from byte {error.start} on)") from None


def _input(text: str, system: str | None, *, chat: bool) -> Json:
    if system is None and not chat:
        return {"prompt": text}
    before = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*before, {"role": "user", "content": text}]}


COMMAND = Command(
    name="submit",
    run=submit,
    summary="Hand in a job.",
    more="Prints its id, or with --wait its answer.",
    examples=(
        "submit 'Say hello.' --agent-type Chat --wait",
        "submit - --model bi-medix2 --max-tokens 64 --wait --timeout 60 < prompt.txt",
        "submit 'Say hello.' --json",
    ),
)
