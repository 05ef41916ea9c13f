"""Benchmarks in Redis: begun and ended once, and told from live traffic."""

from __future__ import annotations

from shared.config import HistorySettings
from shared.states import JobState
from shared.store.benchmarks import BenchmarkStore
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.store_fixture import Store, open_store

_CALLER = "benchmark"


async def test_live_traffic_is_told_from_the_benchmarks_own(store: Store) -> None:
    benchmarks = _benchmarks(store)
    await benchmarks.begin("b1", "alpha", {})
    await store.submit("own", target="alpha", caller=_CALLER)

    async def live(*agent_types: str) -> int:
        turn = await benchmarks.turn("b1", "alpha", caller=_CALLER, agent_types=agent_types, fields={})
        return turn.live

    assert await live("Chat") == 0
    await store.submit("named", target="alpha")
    await store.submit("chat", target="auto:Chat")
    await store.submit("any", target="auto:*")
    await store.submit("other", target="beta")
    assert await live("Chat") == 3
    assert await live("MedicalQA") == 2
    assert await live() == 3


async def test_a_benchmark_begins_and_ends_once_however_often_it_is_said(store: Store) -> None:
    async with FaultProxy(store.url) as proxy, open_store(proxy.url, fail_fast=True) as spoiled:
        benchmarks = _benchmarks(spoiled)
        await benchmarks.begin("b0", "other", {})
        await benchmarks.end("b0", "other", JobState.SUCCEEDED, {}, registration=None, learned={})
        proxy.spoil(Fault.DROP_REPLY, name="EVALSHA")
        assert await benchmarks.begin("b1", "alpha", {}) == "b1"
        assert proxy.spoiled
        assert await benchmarks.begin("b2", "alpha", {}) == "b1"
        proxy.spoil(Fault.DROP_REPLY, name="EVALSHA")
        await benchmarks.end("b1", "alpha", JobState.FAILED, {"a": "1"}, registration=None, learned={})
        assert proxy.spoiled
        await benchmarks.end("b1", "alpha", JobState.SUCCEEDED, {"a": "2"}, registration=None, learned={})

        record = await benchmarks.get("b1")
        assert record is not None
        assert (record.fields["state"], record.fields["a"], record.interrupted) == ("failed", "1", False)
        assert await benchmarks.begin("b2", "alpha", {}) == "b2"


def _benchmarks(store: Store) -> BenchmarkStore:
    return BenchmarkStore(store.redis, store.keys, HistorySettings(), 60.0)
