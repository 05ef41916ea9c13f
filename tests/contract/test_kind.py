"""Finding out which kind of server answers: the real llama.cpp, its router, vLLM, and what is neither."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from shared.backends.kind import kind_of
from shared.states import BackendType, Residence
from tests.kit.backends import simulated
from tests.kit.faulty_server import answer, faulty_server
from tests.kit.llama_router import LlamaRouter
from tests.kit.llama_server import LlamaServer
from tests.kit.redis_fixture import free_port
from tests.kit.vllm_backends import simulated_vllm
from tests.kit.waiting import wait_until


async def kind(http: aiohttp.ClientSession, url: str) -> BackendType | None:
    return await kind_of(http, url, timeout_s=2.0)


@pytest.mark.llamacpp
async def test_the_real_llama_cpp_is_told(http: aiohttp.ClientSession, small_llama: LlamaServer) -> None:
    assert await kind(http, small_llama.url) is BackendType.LLAMA_CPP
    assert await kind(http, f"{small_llama.url}/v1") is BackendType.LLAMA_CPP


async def test_the_simulated_ones_are_told_apart(http: aiohttp.ClientSession) -> None:
    async with simulated() as llama, simulated_vllm() as vllm:
        assert await kind(http, llama.url) is BackendType.LLAMA_CPP
        assert await kind(http, vllm.url) is BackendType.VLLM


async def test_asking_wakes_no_sleeper(http: aiohttp.ClientSession) -> None:
    async with simulated() as llama:
        await llama.sleep()
        assert await kind(http, llama.url) is BackendType.LLAMA_CPP
        assert llama.residence is Residence.SLEEPING


async def test_a_router_is_a_llama_cpp_and_loads_nothing_for_it(http: aiohttp.ClientSession) -> None:
    async with LlamaRouter(one="unloaded", two="sleeping") as router:
        assert await kind(http, router.url) is BackendType.LLAMA_CPP
        assert router.loaded_by == []


async def test_one_that_still_loads_is_not_known_yet(http: aiohttp.ClientSession) -> None:
    async with simulated() as llama:
        await llama.unload()
        assert await kind(http, llama.url) is None
        llama.state.load_s = 2.0
        await llama.load()
        assert await kind(http, llama.url) is None

        async def known() -> BackendType | None:
            return await kind(http, llama.url)

        assert await wait_until(known, "it has loaded") is BackendType.LLAMA_CPP


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ({"/version": '{"version": "0.9.9"}', "/v1/models": '{"data": []}'}, BackendType.VLLM),
        ({"/v1/models": '{"data": [{"id": "x"}]}', "/props": '{"role": "router"}'}, BackendType.LLAMA_CPP),
        ({"/v1/models": '{"data": [{"id": "x", "owned_by": "library"}]}'}, None),
        ({"/v1/models": '["vllm"]'}, None),
        ({"/v1/models": '{"data": "vllm"}'}, None),
        ({}, None),
    ],
)  # fmt: skip
async def test_a_server_that_names_another_owner_is_asked_further(
    http: aiohttp.ClientSession, routes: dict[str, str], expected: BackendType | None
) -> None:
    app = web.Application()
    for path, body in routes.items():
        app.router.add_get(path, _says(body))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        assert await kind(http, f"http://127.0.0.1:{runner.addresses[0][1]}") is expected
    finally:
        await runner.cleanup()


async def test_nobody_and_nonsense_have_no_kind(http: aiohttp.ClientSession) -> None:
    assert await kind(http, f"http://127.0.0.1:{free_port()}") is None
    async with faulty_server(answer("200 OK", b"no JSON")) as server:
        assert await kind(http, server.url) is None


def _says(body: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(text=body)

    return handle
