"""Which models a request may go to at all, by the name and the agent type that it asks for."""

from __future__ import annotations

from dataclasses import dataclass

from shared.decision.causes import Cause
from shared.decision.memo import once
from shared.decision.snapshot import LeftOut, Model, Request, Snapshot


@dataclass(frozen=True, slots=True)
class Serving:
    """The models that a request may go to: ``first`` those asked for, ``second`` when none of these can.

    ``accepted``: whether any model at all takes its agent type; ``others``: why those that are not asked for
    are left out; ``largest``: the one with the most context, None where there is no model.
    """

    first: tuple[Model, ...]
    second: tuple[Model, ...]
    accepted: bool
    others: LeftOut
    all: tuple[Model, ...]
    largest: Model | None
    contexts_known: bool


def serving(snapshot: Snapshot, request: Request) -> Serving:
    """Worked out once a snapshot for what is asked for."""
    asked = ("serving", request.model, request.agent_type, request.fallback)
    return once(snapshot.memo, asked, lambda: _serving(snapshot, request))


def _serving(snapshot: Snapshot, request: Request) -> Serving:
    models = tuple(snapshot.models.values())
    agreeing = tuple(model for model in models if _accepts(model, request.agent_type))
    first, second = agreeing, tuple[Model, ...]()
    if request.model is not None:
        first = tuple(model for model in models if request.model in model.serves)
        if request.fallback:
            second = tuple(model for model in agreeing if request.model not in model.serves)
    both = first + second
    return Serving(
        first,
        second,
        accepted=bool(agreeing),
        others=_outside(request),
        all=both,
        largest=max(both, key=lambda model: (model.context_tokens, model.name), default=None),
        contexts_known=all(model.context_known for model in both),
    )


def _accepts(model: Model, agent_type: str | None) -> bool:
    return agent_type is None or not model.agent_types or agent_type in model.agent_types


def _outside(request: Request) -> LeftOut:
    asked = (
        f"the agent type {request.agent_type!r}" if request.model is None else f"the model {request.model!r}"
    )
    return LeftOut(Cause.NOT_SERVING, f"it does not serve {asked}, which was asked for")
