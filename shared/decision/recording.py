"""What a decision was made on, as JSON, so that it can be made again from the decision stream alone."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from shared.decision.snapshot import Gpu, Model, Request, Rules, Snapshot

MOST_MODELS = 16
"""Larger fleets are not recorded: at 300 bytes a model the stream would outgrow the jobs that it explains."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The inputs of one decision."""

    models: dict[str, Model]
    gpus: dict[str, Gpu]
    rules: Rules
    busy: frozenset[str]
    request: Request


_ADAPTER = TypeAdapter(Recorded)


def record(snapshot: Snapshot, request: Request) -> str | None:
    """The inputs as JSON, None for a fleet that is too large to be written down with each decision."""
    if len(snapshot.models) > MOST_MODELS:
        return None
    inputs = Recorded(dict(snapshot.models), dict(snapshot.gpus), snapshot.rules, snapshot.busy, request)
    return _ADAPTER.dump_json(inputs, exclude_defaults=True).decode()


def replay(inputs: str) -> tuple[Snapshot, Request]:
    """The snapshot and the request that ``record`` wrote down."""
    found = _ADAPTER.validate_json(inputs)
    return Snapshot(found.models, found.gpus, found.rules, found.busy), found.request
