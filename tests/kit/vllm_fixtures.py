"""vLLM servers for tests: the real one, started once a session, and the simulated one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.kit.tiny_hf import tiny_hf
from tests.kit.vllm_backends import SMALL, VllmClient, as_small_as, real_vllm, simulated_vllm
from tests.kit.vllm_server import VllmServer, require_vllm

_REAL = [pytest.mark.vllm, pytest.mark.timeout(420)]  # starting takes a minute or two


@pytest.fixture(scope="session")
def real_vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The real server, not yet started; skips where vLLM is not installed."""
    python = require_vllm()
    server = VllmServer(
        python,
        tiny_hf(tmp_path_factory.mktemp("vllm") / "tiny"),
        max_num_seqs=SMALL.max_num_seqs,
        blocks=SMALL.num_blocks,
        max_queued=SMALL.max_queued or 0,
    )
    yield server
    server.stop()


@pytest.fixture(params=[pytest.param("vllm", marks=_REAL), "simulator"])
async def vllm(request: pytest.FixtureRequest, http: aiohttp.ClientSession) -> AsyncIterator[VllmClient]:
    """An idle server: 4 at once, 6 inside, a context of 2,048 tokens, 23 usable KV blocks of 128 tokens."""
    if request.param == "simulator":
        async with simulated_vllm() as backend:
            yield VllmClient(http, as_small_as(backend, SMALL))
        return
    server = request.getfixturevalue("real_vllm_server")
    assert isinstance(server, VllmServer)
    await asyncio.to_thread(server.ensure_started)
    client = VllmClient(http, real_vllm(server))
    await client.settle()
    yield client
