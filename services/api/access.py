"""Who makes a request, where keys are asked for: the name, the role, and what it may ask for."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from shared.store.api_keys import ApiKey, Role
from shared.store.records import KeyLimits

_SLOT = "orchestrator.access"
"""Where the rim leaves it in the scope of a request."""


@dataclass(frozen=True, slots=True)
class Access:
    """One API key at work."""

    name: str
    role: Role
    models: tuple[str, ...] | None
    limits: KeyLimits | None

    @classmethod
    def of(cls, key: ApiKey) -> Access:
        return cls(key.name, key.role, key.models, key.limits)

    def caller(self, asked: str | None) -> str:
        """Whose job it is: an admin may hand in jobs for others, anybody else has the name of the key."""
        return asked if asked and self.role is Role.ADMIN else self.name

    def owns(self, caller: str) -> bool:
        """Whether a job of this caller may be read and cancelled."""
        return self.role is Role.ADMIN or caller == self.name

    @property
    def sees(self) -> str | None:
        """Whose jobs may be listed, None for everybody's."""
        return None if self.role is Role.ADMIN else self.name

    def refusal(self, model: str | None, *, fallback: bool = False) -> str | None:
        """Why a request for this model (None: any will do) is not allowed, None if it is."""
        if self.models is None:
            return None
        allowed = ", ".join(self.models)
        if model is None:
            return f"this key may use {allowed} only: name one of them as the model"
        if model not in self.models:
            return f"the model {model[:128]!r} is not one that this key may use; those are: {allowed}"
        if fallback:
            return f"this key may use {allowed} only: leave fallback out"
        return None


def grant(scope: MutableMapping[str, Any], access: Access) -> None:
    """Say who makes this request."""
    scope[_SLOT] = access


def access_of(scope: MutableMapping[str, Any]) -> Access | None:
    """Who makes this request, None where no keys are asked for."""
    found: Access | None = scope.get(_SLOT)
    return found
