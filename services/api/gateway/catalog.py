"""The names that a request's ``model`` may have, and what stands behind each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from services.api.gateway.refusals import MODEL_NOT_FOUND, Refusal
from shared.jobs import AUTO
from shared.registry import Registration

OWNER = "gpu-orchestrator"
"""Who owns ``auto``; a model is owned by the kind of server that serves it, once that is known."""


class Catalog:
    """The registered models by public name."""

    def __init__(self, registrations: Sequence[Registration]) -> None:
        self.of = registrations
        self._public: dict[str, Registration] = {}
        for entry in registrations:
            for name in entry.served_names:
                self._public.setdefault(name, entry)
        self._agents = sorted({agent for entry in registrations for agent in entry.agent_types})
        self._serves_all = any(not entry.agent_types for entry in registrations)
        self._first_names = {entry.name: entry.served_names[0] for entry in registrations}

    def knows(self, model: str | None, agent_type: str | None) -> bool:
        """Whether a named model (None for any) and an agent type (None for any) are registered."""
        if model is not None and model not in self._public:
            return False
        return agent_type is None or self._serves_all or agent_type in self._agents

    def not_found(self, model: str | None, agent_type: str | None) -> Refusal:
        """The refusal of what is not known, with what is."""
        if model is not None:
            known = ", ".join(sorted(self._public)) or "none yet"
            message = f"the model {model!r} is not registered; known: {known}, and {AUTO!r} for any"
        else:
            known = ", ".join(self._agents) or "none yet"
            message = f"the agent type {agent_type!r} is served by no model; known: {known}"
        return Refusal(404, MODEL_NOT_FOUND, message, param="model")

    def public_name(self, registration: str) -> str:
        """The name by which clients that asked for any model learn which one answered."""
        return self._first_names.get(registration, registration)

    def entries(self) -> list[Mapping[str, JsonValue]]:
        """OpenAI's list: every public name, ``auto``, and ``auto:`` with every agent type."""
        autos = [AUTO, *(f"{AUTO}:{agent}" for agent in self._agents)]
        found = [
            _entry(name, OWNER if entry.backend is None else entry.backend.value)
            for name, entry in self._public.items()
        ]
        return found + [_entry(name, OWNER) for name in autos]

    def entry(self, model_id: str) -> Mapping[str, JsonValue] | None:
        """One entry of that list."""
        return next((entry for entry in self.entries() if entry["id"] == model_id), None)


def _entry(name: str, owner: str) -> Mapping[str, JsonValue]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
