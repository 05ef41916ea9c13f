"""One look at one backend, whichever server it is."""

from __future__ import annotations

from typing import assert_never

import aiohttp

from shared.backends import llama_cpp, vllm
from shared.backends.fetch import Fetcher
from shared.backends.readings import Probe, Props
from shared.states import BackendType

__all__ = ["Probe", "Props", "probe"]


async def probe(
    session: aiohttp.ClientSession,
    base_url: str,
    backend: BackendType,
    *,
    timeout_s: float,
    api_key: str | None = None,
    model: str | None = None,
    props: Props | None = None,
) -> Probe:
    """Look at a backend within ``timeout_s``, all requests together; never raises for the backend's trouble.

    Hand ``props`` of the last probe back in, so that what does not change is not read again. ``model`` is the
    name under which the server knows the model; only a llama.cpp in router mode needs to be told.
    """
    fetcher = Fetcher(session, base_url, timeout_s, api_key)
    match backend:
        case BackendType.LLAMA_CPP:
            return await llama_cpp.probe(fetcher, props, model)
        case BackendType.VLLM:
            return await vllm.probe(fetcher, props)
        case _:
            assert_never(backend)
