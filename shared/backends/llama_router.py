"""llama.cpp in router mode: one address, several models, each a child process that comes and goes.

Every question about one model goes with ``autoload=false``: without it the question itself loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from pydantic import JsonValue

from shared.backends.errors import Broken, Rejected
from shared.states import Residence

_RESIDENCES = {
    "unloaded": Residence.UNLOADED,
    "downloading": Residence.LOADING,
    "loading": Residence.LOADING,
    "loaded": Residence.RESIDENT,
    "sleeping": Residence.SLEEPING,
}


def is_router(props: Mapping[str, JsonValue]) -> bool:
    """Whether the answer to ``GET /props`` (without a model) is a router's."""
    return props.get("role") == "router"


def query(model: str) -> str:
    """What a question about one model ends with, so that it is answered and changes nothing."""
    return f"?model={quote(model, safe='')}&autoload=false"


def standing(models: Mapping[str, JsonValue], model: str) -> tuple[Residence, str | None]:
    """A model's residence by the answer to ``GET /models``, and what went wrong if it failed.

    Raises ``Rejected`` if the router doesn't have it, ``Broken`` if this is no router's answer.
    """
    listed = models.get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    entry = next((entry for entry in entries if entry.get("id") == model), None)
    if entry is None:
        known = ", ".join(sorted(str(entry.get("id")) for entry in entries)) or "none"
        raise Rejected(f"the router has no model {model!r} (set upstream_name to one of: {known})", 404)
    status = entry.get("status")
    if not isinstance(status, dict):
        raise Broken(f"lists model {model!r} without its status", 200)
    if status.get("failed") is True or entry.get("failed") is True:
        code = status.get("exit_code", entry.get("exit_code"))
        return Residence.FAILED, f"its process under the router failed (exit code {code})"
    residence = _RESIDENCES.get(str(status.get("value")))
    if residence is None:
        return Residence.FAILED, f"the router gives it the unknown status {status.get('value')!r}"
    return residence, None
