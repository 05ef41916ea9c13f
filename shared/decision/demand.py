"""What waits for a model, and what loading it would gain."""

from __future__ import annotations

from shared.decision.readings import finite
from shared.decision.snapshot import Backlog, Model, Snapshot
from shared.states import Residence

_AUTO = "auto:"
_ANY_AGENT = "*"
_SERVES_SOON = frozenset({Residence.RESIDENT, Residence.UNKNOWN, Residence.LOADING})


def serves_target(model: Model, target: str) -> bool:
    """Whether jobs of this queue may go to the model."""
    if target in model.serves:
        return True
    agent = target.removeprefix(_AUTO)
    return agent != target and (agent == _ANY_AGENT or not model.agent_types or agent in model.agent_types)


def gain(backlog: Backlog) -> float:
    """Seconds of waiting over all jobs of a queue: the sum of age + expected wait.

    Only the oldest age is known. Jobs that came evenly since then have, together, (n + 1) / 2 of it. There is
    no bound in time, so nothing starves. An unknown part counts as nothing.
    """
    waiting = max(0, backlog.waiting)
    ages = max(0.0, finite(backlog.head_age_s) or 0.0) * (waiting + 1) / 2 if waiting else 0.0
    return min(ages + waiting * max(0.0, finite(backlog.expected_wait_s) or 0.0), 1e15)


def gain_of(snapshot: Snapshot, model: Model) -> float:
    """What loading the model would gain, over every queue that it serves."""
    return sum(gain(one) for one in wanting(snapshot, model))


def wanting(snapshot: Snapshot, model: Model) -> tuple[Backlog, ...]:
    """The queues with jobs that may go to the model, by target."""
    found = (one for one in snapshot.backlogs if one.waiting > 0 and serves_target(model, one.target))
    return tuple(sorted(found, key=lambda one: one.target))


def is_served(snapshot: Snapshot, backlog: Backlog) -> bool:
    """Whether some model serves the queue already, or will without being asked."""
    return any(
        # One that no monitor probes may never serve.
        model.residence in _SERVES_SOON and not model.unprobed and serves_target(model, backlog.target)
        for model in snapshot.models.values()
    )
