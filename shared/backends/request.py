"""What every call to a backend says: its address, and the headers that name our key and the request."""

from __future__ import annotations

from shared.masking import keep_secret
from shared.request_ids import HEADER


def root_url(base_url: str) -> str:
    """A backend's address without the ``/v1`` that people copy along, and without a trailing slash."""
    root = base_url.rstrip("/")
    return root if root.endswith("//v1") else root.removesuffix("/v1").rstrip("/")


def headers(api_key: str | None, request_id: str = "") -> dict[str, str]:
    """The headers that every call to a backend carries, and the id of the request that it is made for."""
    if api_key:
        keep_secret(api_key)  # a backend that quotes our request in its error must not make it public
    found = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    if request_id:
        found[HEADER] = request_id
    return found
