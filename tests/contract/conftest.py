"""The backends that the contract holds for: the real llama.cpp and the simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.kit.backends import Backend, simulated, wait_idle
from tests.kit.llama_server import LlamaServer


@pytest.fixture(params=[pytest.param("llama.cpp", marks=pytest.mark.llamacpp), "simulator"])
async def backend(request: pytest.FixtureRequest, http: aiohttp.ClientSession) -> AsyncIterator[Backend]:
    """An idle backend with 2 slots of 4,096 tokens."""
    if request.param == "simulator":
        async with simulated("small") as model:
            yield Backend(model.url, "small", slots=2, context_tokens=4096, simulated=True)
        return
    server = request.getfixturevalue("small_llama")
    assert isinstance(server, LlamaServer)
    await wait_idle(http, server.url)
    yield Backend(server.url, server.alias, server.slots, server.context_tokens, simulated=False)
