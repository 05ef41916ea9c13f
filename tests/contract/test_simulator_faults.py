"""Every fault of the simulator, as ``complete`` and ``probe`` see it."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from services.simulator.backend import SimulatedBackend
from services.simulator.faults import Fault, FaultKind
from shared.backends.completion import complete
from shared.backends.errors import BackendError, Broken, Interrupted, NotSent, Rejected, Saturated
from shared.backends.http import HttpClient
from shared.backends.probe import probe
from shared.states import BackendType, Residence
from tests.kit.backends import call, simulated
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until


def fault(kind: FaultKind, **fields: Any) -> Fault:
    return Fault(kind=kind, **fields)


async def failure(client: HttpClient, model: SimulatedBackend, **changes: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await complete(client, call(model.url, **changes))
    return caught.value


async def test_refuse_closes_the_port_and_healing_opens_it_again(
    http: aiohttp.ClientSession, client: HttpClient
) -> None:
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.REFUSE))
        error = await failure(client, model)
        seen = await probe(http, model.url, BackendType.LLAMA_CPP, timeout_s=10.0)
        await model.set_fault(None)
        done = await complete(client, call(model.url))

    assert (type(error), error.type) == (NotSent, "connect_refused")
    assert seen.residence is Residence.UNLOADED
    assert done.output_tokens == 8


async def test_refuse_cuts_off_what_runs(client: HttpClient) -> None:
    async with simulated() as model:
        begun = asyncio.Event()
        body: dict[str, Any] = {"prompt": "the queue", "max_tokens": 4000}
        task = asyncio.create_task(complete(client, call(model.url, body), begun.set))
        await begun.wait()
        await model.set_fault(fault(FaultKind.REFUSE))

        with pytest.raises(Interrupted):
            await task
        assert (model.running, model.counters.abandoned) == (0, 1)


@pytest.mark.parametrize(
    ("status", "expected", "error_type"),
    [
        (429, Saturated, "backend_saturated"),
        (503, Saturated, "backend_saturated"),
        (400, Rejected, "backend_rejected"),
        (422, Rejected, "backend_rejected"),
        (500, Broken, "backend_error"),
        (502, Broken, "backend_error"),
    ],
)
async def test_a_status_is_told_apart_and_heals_after_its_times(
    client: HttpClient,
    status: int,
    expected: type[BackendError],
    error_type: str,
) -> None:
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.STATUS, status=status, times=2))
        errors = [await failure(client, model), await failure(client, model)]
        done = await complete(client, call(model.url))

    assert [(type(error), error.type, error.status) for error in errors] == [
        (expected, error_type, status)
    ] * 2
    assert errors[0].detail == f"simulated fault: status {status}"
    assert (done.output_tokens, model.fault, model.counters.struck) == (8, None, 2)


async def test_retry_after_is_passed_on(client: HttpClient) -> None:
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.STATUS, status=503, retry_after_s=2.5))
        error = await failure(client, model)

    assert isinstance(error, Saturated)
    assert error.retry_after_s == 2.5


async def test_hang_before_the_headers_ends_in_a_time_out(client: HttpClient) -> None:
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.HANG))
        error = await failure(client, model, idle_timeout_s=0.2)
        await wait_until(lambda: model.running == 0, "the hung request has left its slot")

    assert (type(error), error.type) == (Interrupted, "backend_timeout")


async def test_hang_in_the_middle_ends_in_a_time_out(client: HttpClient) -> None:
    begun = asyncio.Event()
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.HANG, after_tokens=2))
        with pytest.raises(Interrupted) as caught:
            await complete(client, call(model.url, idle_timeout_s=0.2), begun.set)

    assert caught.value.type == "backend_timeout"
    assert begun.is_set()


async def test_a_hung_request_goes_on_once_healed(client: HttpClient) -> None:
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.HANG))
        task = asyncio.create_task(complete(client, call(model.url)))
        await wait_until(lambda: model.running == 1, "the request hangs in its slot")
        await model.set_fault(None)
        done = await task

    assert done.output_tokens == 8


async def test_a_request_that_waits_in_line_while_its_fault_is_healed_is_answered(
    client: HttpClient,
) -> None:
    body: dict[str, Any] = {"prompt": "the queue", "max_tokens": 1000}
    async with simulated(slots=1) as model:
        first = asyncio.create_task(complete(client, call(model.url, body)))
        await wait_until(lambda: model.running == 1, "the first request has the slot")
        await model.set_fault(fault(FaultKind.HANG))
        second = asyncio.create_task(complete(client, call(model.url)))
        await wait_until(lambda: model.deferred == 1, "the second one waits in line")
        await model.set_fault(None)

        assert [done.output_tokens for done in await asyncio.gather(first, second)] == [1000, 8]


@pytest.mark.parametrize("after_tokens", [0, 1, 3, 100])
async def test_dying_in_the_middle_of_the_stream_is_an_interruption(
    client: HttpClient, after_tokens: int
) -> None:
    told: list[int] = []
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.DIE_MID_STREAM, after_tokens=after_tokens))
        with pytest.raises(Interrupted) as caught:
            await complete(client, call(model.url), lambda: told.append(1))

    assert caught.value.type == "backend_interrupted"
    assert len(told) == min(1, after_tokens)


@pytest.mark.parametrize(
    ("status", "expected"), [(500, Broken), (400, Rejected), (503, Saturated), (429, Saturated)]
)
async def test_an_error_inside_the_stream_counts_by_its_code(
    client: HttpClient, status: int, expected: type[BackendError]
) -> None:
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.SSE_ERROR, status=status))
        error = await failure(client, model)

    assert (type(error), error.status) == (expected, status)
    assert error.detail == "simulated failure in the middle of the answer"


async def test_slow_is_ten_times_slower(client: HttpClient) -> None:
    body: dict[str, Any] = {"prompt": "the queue", "max_tokens": 41}
    with Stopwatch() as watch:
        async with simulated(tokens_per_second=400.0) as model:
            usual = await complete(client, call(model.url, body))
            usual_away_ms = watch.away_s * 1000
            await model.set_fault(fault(FaultKind.SLOW))
            watch.restart()
            slow = await complete(client, call(model.url, body))
        slow_away_ms = watch.away_s * 1000

    assert usual.output_ms is not None
    assert slow.output_ms is not None
    assert 50 < usual.output_ms < 400 + usual_away_ms
    assert 700 < slow.output_ms < 1400 + slow_away_ms


async def test_faults_leave_the_observing_endpoints_alone(http: aiohttp.ClientSession) -> None:
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.STATUS, status=500))
        seen = await probe(http, model.url, BackendType.LLAMA_CPP, timeout_s=10.0)

    assert (seen.residence, seen.error) == (Residence.RESIDENT, None)


async def test_an_unstreamed_answer_suffers_the_same_faults(http: aiohttp.ClientSession) -> None:
    body: dict[str, Any] = {"prompt": "the queue", "max_tokens": 8}
    async with simulated() as model:
        await model.set_fault(fault(FaultKind.SSE_ERROR, status=500, times=1))
        async with http.post(f"{model.url}/v1/completions", json=body) as response:
            assert response.status == 500
        await model.set_fault(fault(FaultKind.DIE_MID_STREAM))
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await http.post(f"{model.url}/v1/completions", json=body)


async def test_while_loading_everything_is_answered_503_and_probed_as_loading(
    http: aiohttp.ClientSession,
    client: HttpClient,
) -> None:
    async with simulated() as model:
        await model.unload()
        unloaded = await probe(http, model.url, BackendType.LLAMA_CPP, timeout_s=10.0)
        model.state.load_s = 1.2
        await model.load()
        loading = await probe(http, model.url, BackendType.LLAMA_CPP, timeout_s=10.0)
        error = await failure(client, model)
        await wait_until(lambda: model.residence is Residence.RESIDENT, "the model is loaded")
        done = await complete(client, call(model.url))

    assert unloaded.residence is Residence.UNLOADED
    assert (loading.residence, loading.error) == (Residence.LOADING, "backend_saturated: Loading model")
    assert (type(error), error.detail) == (Saturated, "Loading model")
    assert done.output_tokens == 8
