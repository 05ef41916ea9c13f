"""What a decision was made on, as JSON, so that it can be made again from the decision stream alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter
from pydantic_core import SchemaSerializer, to_json

from shared.decision.memo import lasting, once
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


_RECORDED = TypeAdapter(Recorded)
_MODEL, _GPU, _RULES, _REQUEST = (TypeAdapter(kind).serializer for kind in (Model, Gpu, Rules, Request))
_Encoded = dict[int, tuple[object, str]]
"""Models and GPUs as JSON by their ``id`` in this process, with the value, so that no other gets that id."""


def record(snapshot: Snapshot, request: Request) -> str | None:
    """The inputs as JSON, None for a fleet that is too large to be written down with each decision."""
    if len(snapshot.models) > MOST_MODELS:
        return None
    fleet = once(snapshot.memo, "recorded", lambda: _fleet(snapshot))
    return f'{fleet},"request":{_json(_REQUEST, request)}}}'


def _fleet(snapshot: Snapshot) -> str:
    """All but the request, and without the last brace."""
    known: _Encoded = once(lasting(snapshot.memo), "encoded", dict)
    models = _object(snapshot.models, _MODEL, known)
    gpus = _object(snapshot.gpus, _GPU, known)
    busy = to_json(snapshot.busy).decode()
    return f'{{"models":{models},"gpus":{gpus},"rules":{_json(_RULES, snapshot.rules)},"busy":{busy}'


def _object(values: Mapping[str, object], serializer: SchemaSerializer, known: _Encoded) -> str:
    items = []
    for name, value in values.items():
        found = known.get(id(value))
        if found is None:
            found = known[id(value)] = (value, _json(serializer, value))
        items.append(f"{to_json(name).decode()}:{found[1]}")
    return f"{{{','.join(items)}}}"


def _json(serializer: SchemaSerializer, value: object) -> str:
    return serializer.to_json(value, exclude_defaults=True).decode()


def replay(inputs: str) -> tuple[Snapshot, Request]:
    """The snapshot and the request that ``record`` wrote down."""
    found = _RECORDED.validate_json(inputs)
    return Snapshot(found.models, found.gpus, found.rules, found.busy), found.request
