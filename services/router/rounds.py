"""What one look at the queues stands on, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from shared.decision.slots import with_slot
from shared.decision.snapshot import Decision, Model, Request, Snapshot
from shared.store.records import ClaimOrder, Head, View


class Drained(IntEnum):
    """What is left of a queue after a look at its heads."""

    WAITS = 0
    """Nothing that could go now."""
    STALE = 1
    """Perhaps more, but the jobs shown were gone already."""
    MORE = 2
    """More than the view showed; some that it showed are through."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One job's decision, and the claim that carries it out."""

    head: Head
    decision: Decision
    model: Model
    order: ClaimOrder


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a job can't go now, or never."""

    decision: Decision
    request: Request


class Round:
    """One pass's picture of the fleet, kept up to date with what the pass itself claims."""

    def __init__(self, view: View, snapshot: Snapshot) -> None:
        self.view = view
        self.snapshot = snapshot
        self.models = {entry.registration.name: entry for entry in view.models}

    def api_key_env(self, model: Model) -> str | None:
        return self.models[model.name].registration.api_key_env

    def take_slot(self, model: Model) -> None:
        self.snapshot = with_slot(self.snapshot, model.name)

    def set_busy(self, model: Model) -> None:
        self.snapshot = replace(self.snapshot, busy=self.snapshot.busy | {model.name})


def holder_of(head: Head) -> str:
    """The api on whose connection the client of an attached job waits, empty for a job of our own."""
    return head.fields.get("attached_to", "")
