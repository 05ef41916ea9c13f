"""What the event stream alone proves about jobs: legal paths, attempts that rise, exactly one end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from shared.states import FINAL_EVENTS, JobEvent
from shared.store.records import StreamEntry

_NEXT: Mapping[str | None, frozenset[str]] = {
    None: frozenset({JobEvent.QUEUED}),
    "queued": frozenset(
        {JobEvent.HELD, JobEvent.STARTED, JobEvent.CANCELLED, JobEvent.EXPIRED, JobEvent.FAILED}
    ),
    "running": frozenset(
        {JobEvent.RETRIED, JobEvent.REQUEUED, JobEvent.CANCEL_REQUESTED} | set(FINAL_EVENTS)
    ),
}


class Journal:
    """Events by job, in stream order."""

    def __init__(self, entries: Iterable[StreamEntry]) -> None:
        self.jobs: dict[str, list[StreamEntry]] = defaultdict(list)
        for entry in entries:
            self.jobs[entry.fields["job_id"]].append(entry)

    def ended(self) -> dict[str, str]:
        """The final event of every job that has one."""
        found = {}
        for job, entries in self.jobs.items():
            ends = [entry.fields["type"] for entry in entries if entry.fields["type"] in FINAL_EVENTS]
            if ends:
                found[job] = ends[-1]
        return found

    def faults(self) -> list[str]:
        """Everything that must not be: empty for a sound history."""
        return [fault for job, entries in self.jobs.items() for fault in _faults(job, entries)]


def _faults(job: str, entries: list[StreamEntry]) -> list[str]:
    faults: list[str] = []
    state: str | None = None
    attempt = 0
    for entry in entries:
        kind = entry.fields["type"]
        if kind not in _NEXT.get(state, frozenset()):
            faults.append(f"{job}: {kind} after state {state}")
        if kind == JobEvent.STARTED:
            attempt += 1
            if int(entry.fields["attempt"]) != attempt:
                faults.append(f"{job}: attempt {entry.fields['attempt']} started, expected {attempt}")
        state = entry.fields["state"]
    ends = [entry for entry in entries if entry.fields["type"] in FINAL_EVENTS]
    if len(ends) > 1:
        faults.append(f"{job}: ended {len(ends)} times")
    return faults


def most_in_flight(entries: Iterable[StreamEntry]) -> dict[str, int]:
    """The highest number of attempts that each model had at once, by the stream alone."""
    running: dict[str, str] = {}
    peak: dict[str, int] = defaultdict(int)
    for entry in entries:
        job, kind = entry.fields["job_id"], entry.fields["type"]
        if kind == JobEvent.STARTED:
            running[job] = entry.fields["model"]
            model = running[job]
            peak[model] = max(peak[model], sum(1 for other in running.values() if other == model))
        elif kind not in (JobEvent.CANCEL_REQUESTED, JobEvent.HELD):
            running.pop(job, None)
    return dict(peak)
