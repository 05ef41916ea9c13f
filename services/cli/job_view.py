"""A job, a list of jobs, a job's events and its end, as a person reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.cli.blocks import Block, Cell, Fields, Prose, Table, Tone, columns, fields, row
from services.cli.client import Json
from services.cli.failures import Refused
from services.cli.follow import Event
from services.cli.screen import Screen
from services.cli.wording import age, clock, shown, span, toned

_DETAILS = ("model", "backend", "gpu", "attempt", "code", "reason", "error_type", "error_detail")
"""What of an event a person wants to read, in this order."""


def job_table(jobs: Sequence[Json], now_ms: float) -> Table:
    rows = (
        row(
            job["job_id"],
            toned(job["state"]),
            shown((job["decision"] or {}).get("model") or job["model"]),
            shown(job["agent_type"]),
            age(job["submitted_ms"], now_ms),
            span(job["timings"]["queued_ms"]),
            span(job["timings"]["total_ms"]),
            _outcome(job),
        )
        for job in jobs
    )
    names = columns("JOB", "STATE", "MODEL", "AGENT?", "AGE>", "QUEUED>?", "TOTAL>", "WHY~")
    return Table(names, tuple(rows), empty="no jobs")


def job_blocks(job: Json, now_ms: float) -> list[Block]:
    """Everything about one job, with its answer below where there is one."""
    found: list[Block] = [_job_fields(job, now_ms)]
    text = (job["result"] or {}).get("text")
    return [*found, Prose(text)] if text else found


def event_cells(event: Event) -> tuple[Cell, ...]:
    """One event as a line: when, what, and why."""
    milliseconds = event.id.partition("-")[0]
    details = (f"{name}={event.fields[name]}" for name in _DETAILS if event.fields.get(name))
    return (
        Cell(clock(int(milliseconds)) if milliseconds.isdecimal() else "", Tone.FAINT),
        Cell(event.type, toned(event.type).tone),
        Cell(" ".join(details)),
    )


def finish(screen: Screen, job: Json) -> None:
    """Print the end of a job: its text, or raise ``Refused`` with what went wrong."""
    if screen.as_json:
        screen.document(job)
    elif job["state"] == "succeeded":
        screen.show(job, Prose((job["result"] or {}).get("text") or ""))
        screen.note(_summary(job))
    require_success(job)


def require_success(job: Json) -> None:
    """Raise ``Refused`` for a job that ended in any other way."""
    if job["state"] != "succeeded":
        why = _outcome(job)
        raise Refused(f"job {job['job_id']} is {job['state']}{f': {why}' if why else ''}")


def _job_fields(job: Json, now_ms: float) -> Fields:
    decision, timings = job["decision"] or {}, job["timings"]
    usage = (job["result"] or {}).get("usage") or {}
    tokens = usage.get("completion_tokens")
    return fields(
        ("job", str(job["job_id"])),
        ("state", toned(job["state"])),
        ("error", Cell(_error(job), Tone.BAD)),
        ("position", "" if job["position"] is None else f"{job['position']} in its queue"),
        ("agent type", job["agent_type"] or ""),
        ("asked for", job["model"] or ""),
        ("priority", shown(job["priority"])),
        ("submitted", f"{age(job['submitted_ms'], now_ms)} ago"),
        ("decision", toned(decision["action"]) if decision else ""),
        ("model", decision.get("model") or ""),
        ("backend", " ".join(str(decision[name]) for name in ("backend", "url") if decision.get(name))),
        ("gpu", decision.get("gpu") or ""),
        ("reason", decision.get("reason") or ""),
        ("attempts", f"{job['attempt']} ({job['tries']} charged)" if job["attempt"] else ""),
        ("queued", _known(timings["queued_ms"])),
        ("first token", _known(timings["first_token_ms"])),
        ("running", _known(timings["running_ms"])),
        ("total", _known(timings["total_ms"])),
        ("output", "" if tokens is None else f"{tokens} tokens"),
    )


def _known(ms: float | None) -> str:
    return "" if ms is None else span(ms)


def _error(job: Json) -> str:
    error = job["error"]
    return f"{error['type']}: {error['detail']}".rstrip(": ") if error else ""


def _outcome(job: Json) -> str:
    """Why it failed, or why it waits."""
    decision = job["decision"] or {}
    held = decision.get("reason", "") if decision.get("action") == "hold" else ""
    return _error(job) or str(held)


def _summary(job: Json) -> str:
    model = (job["decision"] or {}).get("model")
    tokens = ((job["result"] or {}).get("usage") or {}).get("completion_tokens")
    parts = [f"job {job['job_id']}", shown(model), span(job["timings"]["total_ms"])]
    return ", ".join([*parts, *([] if tokens is None else [f"{tokens} tokens"])])


def now_ms() -> float:
    return time.time() * 1000
