"""``probe`` against the real llama.cpp and the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from shared.backends.probe import Probe, Props, probe
from shared.backends.session import open_session
from shared.states import BackendType, Residence
from tests.kit.backends import Backend, call, long_streams, simulated
from tests.kit.configs import free_ports
from tests.kit.llama_server import LlamaServer
from tests.kit.waiting import wait_until


async def look(
    http: aiohttp.ClientSession, url: str, props: Props | None = None, api_key: str | None = None
) -> Probe:
    return await probe(http, url, BackendType.LLAMA_CPP, timeout_s=10.0, api_key=api_key, props=props)


async def test_an_idle_backend_is_resident_with_its_slots_and_context(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    seen = await look(http, backend.url)

    assert seen.error is None
    assert (seen.residence, seen.running, seen.waiting) == (Residence.RESIDENT, 0, 0)
    assert (seen.slots, seen.context_tokens) == (backend.slots, backend.context_tokens)
    assert (seen.upstream_name, seen.simulated) == (backend.name, backend.simulated)
    assert seen.kv_use == 0.0
    assert 0 < seen.latency_ms < 10_000


async def test_a_full_backend_tells_what_runs_what_waits_and_its_kv_use(
    backend: Backend, http: aiohttp.ClientSession
) -> None:
    async with long_streams(http, backend.url, backend.slots + 2):

        async def full() -> Probe | None:
            seen = await look(http, backend.url, props)
            return seen if (seen.running, seen.waiting) == (backend.slots, 2) and seen.kv_use else None

        props = (await look(http, backend.url)).props
        seen = await wait_until(full, "all slots run and two requests wait")

    assert seen.residence is Residence.RESIDENT
    assert seen.kv_use is not None
    assert 0.0 < seen.kv_use <= 1.0
    assert seen.slots == backend.slots


@pytest.fixture(params=[pytest.param("llama.cpp", marks=pytest.mark.llamacpp), "simulator"])
async def sleeper(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The address of a backend that falls asleep."""
    if request.param == "simulator":
        async with simulated() as model:
            await model.sleep()
            yield model.url
        return
    model_path = request.getfixturevalue("small_model")
    assert isinstance(model_path, Path)
    async with LlamaServer(model_path, alias="sleeper", sleep_idle_s=1) as server:
        yield server.url


async def test_probing_sees_a_sleeper_and_lets_it_sleep_until_work_comes(
    sleeper: str, http: aiohttp.ClientSession
) -> None:
    async def asleep() -> Probe | None:
        seen = await look(http, sleeper, props)
        return seen if seen.residence is Residence.SLEEPING else None

    props = (await look(http, sleeper)).props
    seen = await wait_until(asleep, "the server sleeps although it is probed all the time")
    assert (seen.error, seen.slots, seen.props) == (None, 2, props)
    for _ in range(20):
        assert (await look(http, sleeper, props)).residence is Residence.SLEEPING

    async with http.post(call(sleeper).url, json={"prompt": "hi", "max_tokens": 2}) as response:
        assert response.status == 200

    assert (await look(http, sleeper, props)).residence is Residence.RESIDENT


async def test_reading_the_slots_wakes_a_sleeper(sleeper: str, http: aiohttp.ClientSession) -> None:
    async def asleep() -> bool:
        return (await look(http, sleeper)).residence is Residence.SLEEPING

    await wait_until(asleep, "the server sleeps")

    async with http.get(f"{sleeper}/slots") as response:
        assert response.status == 200

    assert (await look(http, sleeper)).residence is Residence.RESIDENT


async def test_where_nothing_listens_the_model_is_unloaded(http: aiohttp.ClientSession) -> None:
    seen = await look(http, f"http://127.0.0.1:{free_ports(1)[0]}")

    assert seen.residence is Residence.UNLOADED
    assert seen.error is not None
    assert seen.error.startswith("connect_refused: ")
    assert (seen.running, seen.waiting, seen.slots, seen.props) == (None, None, None, None)


@pytest.mark.llamacpp
async def test_switched_off_endpoints_leave_their_readings_unknown(
    small_model: Path, http: aiohttp.ClientSession
) -> None:
    flags = ("--no-slots", "--no-metrics")
    async with (
        LlamaServer(small_model, alias="silent", flags=flags) as server,
        long_streams(http, server.url, 1),
    ):
        seen = await look(http, server.url)

    assert (seen.residence, seen.slots, seen.error) == (Residence.RESIDENT, 2, None)
    assert (seen.running, seen.waiting, seen.kv_use) == (None, None, None)


@pytest.mark.llamacpp
async def test_without_slots_only_the_kv_use_is_unknown(
    small_model: Path, http: aiohttp.ClientSession
) -> None:
    async with (
        LlamaServer(small_model, alias="slotless", flags=("--no-slots",)) as server,
        long_streams(http, server.url, 1),
    ):

        async def running() -> Probe | None:
            seen = await look(http, server.url)
            return seen if seen.running == 1 else None

        seen = await wait_until(running, "one request runs")

    assert (seen.waiting, seen.kv_use, seen.error) == (0, None, None)


@pytest.mark.llamacpp
async def test_a_wrong_api_key_makes_a_healthy_server_useless(
    small_model: Path, http: aiohttp.ClientSession
) -> None:
    async with LlamaServer(small_model, alias="locked", api_key="right") as server:
        wrong = await look(http, server.url, api_key="wrong")
        right = await look(http, server.url, api_key="right")

    assert (wrong.residence, wrong.slots) == (Residence.FAILED, None)
    assert wrong.error is not None
    assert "Invalid API Key" in wrong.error
    assert (right.residence, right.error) == (Residence.RESIDENT, None)


@pytest.mark.llamacpp
async def test_a_killed_server_is_seen_as_unloaded_and_its_successors_props_are_read_anew(
    small_model: Path, http: aiohttp.ClientSession
) -> None:
    (port,) = free_ports(1)
    async with LlamaServer(small_model, alias="first", port=port) as server:
        props = (await look(http, server.url)).props
        server.kill()
        gone = await look(http, server.url, props)
    async with LlamaServer(small_model, alias="second", slots=1, port=port) as server:
        back = await look(http, server.url, gone.props)

    assert (gone.residence, gone.props) == (Residence.UNLOADED, None)
    assert (back.residence, back.slots, back.upstream_name) == (Residence.RESIDENT, 1, "second")


@pytest.mark.llamacpp
async def test_two_servers_of_different_size_are_told_apart(
    small_llama: LlamaServer, large_llama: LlamaServer, http: aiohttp.ClientSession
) -> None:
    small, large = await look(http, small_llama.url), await look(http, large_llama.url)

    assert (small.upstream_name, small.slots, small.context_tokens) == ("small", 2, 4096)
    assert (large.upstream_name, large.slots, large.context_tokens) == ("large", 1, 8192)


@pytest.mark.parametrize(("reuse_s", "connections"), [(0.0, 3), (1.0, 1)])
async def test_a_session_for_reading_spends_one_connection_on_a_probe(
    reuse_s: float, connections: int
) -> None:
    used: list[asyncio.BaseTransport] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None and request.transport not in used:
            used.append(request.transport)
        return web.json_response({}) if request.path == "/props" else web.Response()

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with open_session(reuse_s=reuse_s) as session:
        seen = await look(session, f"http://127.0.0.1:{port}")
    await runner.cleanup()

    assert (seen.residence, len(used)) == (Residence.RESIDENT, connections)


_PATIENCE_S = 0.8


@pytest.mark.parametrize("kind", list(BackendType))
async def test_a_server_too_busy_for_more_than_health_stays_resident_with_unknown_numbers(
    kind: BackendType, http: aiohttp.ClientSession
) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/health":
            await asyncio.sleep(30)
        return web.Response()

    runner = web.ServerRunner(web.Server(handle, handler_cancellation=True))
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    props = Props(slots=4, context_tokens=1024, upstream_name="known")
    seen = await probe(http, f"http://127.0.0.1:{port}", kind, timeout_s=_PATIENCE_S, props=props)
    await runner.cleanup()

    assert (seen.residence, seen.running, seen.waiting, seen.kv_use) == (Residence.RESIDENT, None, None, None)
    assert (seen.context_tokens, seen.upstream_name, seen.props) == (1024, "known", props)
    assert seen.error is not None
    assert seen.error.startswith("backend_timeout")
    assert seen.latency_ms < _PATIENCE_S * 1000
