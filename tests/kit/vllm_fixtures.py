"""vLLM servers for tests: the real one, started once a session, and the simulated one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from shared.backends.http import HttpClient
from shared.states import JobState
from tests.kit.gateway import Desk, desk
from tests.kit.store_fixture import Store
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
async def vllm(
    request: pytest.FixtureRequest, http: aiohttp.ClientSession, client: HttpClient
) -> AsyncIterator[VllmClient]:
    """An idle server: 4 at once, 6 inside, a context of 2,048 tokens, 23 usable KV blocks of 128 tokens."""
    if request.param == "simulator":
        async with simulated_vllm() as backend:
            yield VllmClient(http, client, as_small_as(backend, SMALL))
        return
    server = request.getfixturevalue("real_vllm_server")
    assert isinstance(server, VllmServer)
    await asyncio.to_thread(server.ensure_started)
    real = VllmClient(http, client, real_vllm(server))
    await real.settle()
    yield real


@pytest.fixture(params=["direct", "gateway"])
async def served(
    request: pytest.FixtureRequest,
    vllm: VllmClient,
    http: aiohttp.ClientSession,
    store: Store,
    tmp_path: Path,
) -> AsyncIterator[VllmClient]:
    """The same server, asked directly, and asked through our gateway."""
    if request.param == "direct":
        yield vllm
        return
    async with gateway_to(vllm, http, store, tmp_path) as client:
        yield client


@asynccontextmanager
async def gateway_to(
    vllm: VllmClient, http: aiohttp.ClientSession, store: Store, directory: Path
) -> AsyncIterator[VllmClient]:
    """A gateway whose every job goes to this server, ``tiny`` and ``nope`` (which it does not have) alike."""
    models = [
        {
            "name": name,
            "backend": "vllm",
            "url": vllm.server.url,
            "agent_types": ["Chat"],
            # A name that was said is not waited for to be found out.
            "upstream_name": name,
        }
        for name in (vllm.server.name, "nope")
    ]
    async with desk(store, directory, models=models) as api, asyncio.TaskGroup() as group:
        routing = group.create_task(_route_all(api, vllm.server.url))
        yield VllmClient(http, vllm.client, vllm.server, api.url)
        routing.cancel()


async def _route_all(api: Desk, url: str) -> None:
    while True:
        for job in await api.store.jobs.list_newest(state=JobState.QUEUED, limit=1):
            model = job.fields["model"]
            await api.grant(url, backend="vllm", model=model, upstream_name=model)
        await asyncio.sleep(0.005)
