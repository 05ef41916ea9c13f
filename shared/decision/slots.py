"""The same moment with one request more or less in flight."""

from __future__ import annotations

from dataclasses import replace

from shared.decision.memo import hand_on
from shared.decision.snapshot import Snapshot


def with_slot(snapshot: Snapshot, model: str, change: int = 1) -> Snapshot:
    """The snapshot with ``change`` more requests in flight on a model and its GPUs, never fewer than none.

    An unknown model changes nothing.
    """
    now = snapshot.models.get(model)
    if now is None:
        return snapshot
    gpus = dict(snapshot.gpus)
    for gpu in now.gpus:
        gpus[gpu] = replace(gpus[gpu], in_flight=max(0, gpus[gpu].in_flight + change))
    models = {**snapshot.models, model: replace(now, in_flight=max(0, now.in_flight + change))}
    changed = replace(snapshot, models=models, gpus=gpus)
    hand_on(snapshot.memo, changed.memo)
    return changed
