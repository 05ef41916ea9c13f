"""Which kind of server answers at an address, from what each says of itself."""

from __future__ import annotations

import aiohttp
from pydantic import JsonValue

from shared.backends import llama_router
from shared.backends.errors import BackendError
from shared.backends.fetch import Fetcher
from shared.states import BackendType

_OWNERS = {"llamacpp": BackendType.LLAMA_CPP, "vllm": BackendType.VLLM}
"""What they write as ``owned_by`` into ``GET /v1/models`` (recorded of both, and of a llama.cpp router)."""


async def kind_of(
    session: aiohttp.ClientSession, base_url: str, *, timeout_s: float, api_key: str | None = None
) -> BackendType | None:
    """Ask ``/v1/models``, and where that names another owner ``/version`` and ``/props``; never raises.

    None: within ``timeout_s`` it does not answer, still loads, asks for a key that we lack, or is neither.
    Nothing here loads or wakes a model.
    """
    fetcher = Fetcher(session, base_url, timeout_s, api_key)
    try:
        listed = (await fetcher.get("/v1/models")).object().get("data")
    except BackendError:
        return None
    owners = [_OWNERS.get(str(entry.get("owned_by"))) for entry in _objects(listed)]
    known = next((kind for kind in owners if kind is not None), None)
    if known is not None:
        return known
    if isinstance((await _object(fetcher, "/version")).get("version"), str):
        return BackendType.VLLM
    props = await _object(fetcher, "/props")
    if llama_router.is_router(props) or isinstance(props.get("default_generation_settings"), dict):
        return BackendType.LLAMA_CPP
    return None


def _objects(listed: JsonValue) -> list[dict[str, JsonValue]]:
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


async def _object(fetcher: Fetcher, path: str) -> dict[str, JsonValue]:
    try:
        return dict((await fetcher.get(path)).object())
    except BackendError:
        return {}
