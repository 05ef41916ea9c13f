"""What a decision was made on, as JSON, so that it can be made again from the decision stream alone."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from shared.decision.snapshot import Gpu, Model, Request, Rules, Snapshot

MOST_MODELS = 16
"""Larger fleets are not recorded: at 300 bytes a model the stream would outgrow the jobs that it explains."""


@dataclass(frozen=True, slots=True)
class _Fleet:
    models: dict[str, Model]
    gpus: dict[str, Gpu]
    rules: Rules
    busy: frozenset[str]


@dataclass(frozen=True, slots=True)
class Recorded(_Fleet):
    """The inputs of one decision."""

    request: Request


_FLEET = TypeAdapter(_Fleet)
_REQUEST = TypeAdapter(Request)
_RECORDED = TypeAdapter(Recorded)
_MEMO = "recorded"


def record(snapshot: Snapshot, request: Request) -> str | None:
    """The inputs as JSON, None for a fleet that is too large to be written down with each decision."""
    if len(snapshot.models) > MOST_MODELS:
        return None
    fleet = snapshot.memo.get(_MEMO)
    if not isinstance(fleet, str):
        inputs = _Fleet(dict(snapshot.models), dict(snapshot.gpus), snapshot.rules, snapshot.busy)
        fleet = snapshot.memo[_MEMO] = _FLEET.dump_json(inputs, exclude_defaults=True).decode()
    asked = _REQUEST.dump_json(request, exclude_defaults=True).decode()
    return f'{fleet[:-1]},"request":{asked}}}'


def replay(inputs: str) -> tuple[Snapshot, Request]:
    """The snapshot and the request that ``record`` wrote down."""
    found = _RECORDED.validate_json(inputs)
    return Snapshot(found.models, found.gpus, found.rules, found.busy), found.request
