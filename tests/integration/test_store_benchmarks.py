"""Benchmarks in Redis: begun and ended once, and told from live traffic."""

from __future__ import annotations

from dataclasses import replace

from shared.config import HistorySettings
from shared.states import JobState
from shared.store.benchmarks import BenchmarkStore, Measurable, TurnOutcome
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.store_fixture import Store, open_store

_CALLER = "benchmark"
_ALPHA = Measurable("alpha", ("alpha",), ("alpha",))
_OTHER = Measurable("other", ("other",), ("other",))


async def test_live_traffic_is_told_from_the_benchmarks_own(store: Store) -> None:
    benchmarks = _benchmarks(store)
    await benchmarks.begin("b1", _ALPHA, {})
    await store.submit("own", target="alpha", caller=_CALLER)

    async def live(*agent_types: str) -> int:
        measured = replace(_ALPHA, agent_types=agent_types)
        return (await benchmarks.turn("b1", measured, caller=_CALLER, fields={})).live

    assert await live("Chat") == 0
    await store.submit("named", target="alpha")
    await store.submit("chat", target="auto:Chat")
    await store.submit("any", target="auto:*")
    await store.submit("other", target="beta")
    assert await live("Chat") == 3
    assert await live("MedicalQA") == 2
    assert await live() == 3


async def test_jobs_for_every_name_of_what_is_measured_are_live_traffic(store: Store) -> None:
    """Two registrations answer to alpha, and one of them to beta too."""
    benchmarks = _benchmarks(store)
    both = Measurable("alpha", ("one", "two"), ("alpha", "beta"), ("Chat", "MedicalQA"))
    await benchmarks.begin("b1", both, {})
    await store.submit("own", target="alpha", caller=_CALLER)
    for job, target in (("1", "alpha"), ("2", "beta"), ("3", "auto:MedicalQA"), ("4", "gamma")):
        await store.submit(job, target=target)
    await store.submit("5", target="beta", caller=_CALLER)  # somebody who calls himself so

    turn = await benchmarks.turn("b1", both, caller=_CALLER, fields={})

    assert (turn.outcome, turn.live) == (TurnOutcome.RUNNING, 4)


async def test_a_registration_is_measured_once_at_a_time_whatever_it_is_called(store: Store) -> None:
    benchmarks = _benchmarks(store)
    replicas = Measurable("alpha", ("one", "two"), ("alpha", "beta"))
    by_other_name = Measurable("beta", ("two",), ("alpha", "beta"))
    apart = Measurable("gamma", ("three",), ("gamma",))

    assert await benchmarks.begin("b1", replicas, {}) == "b1"
    assert await benchmarks.begin("b2", by_other_name, {}) == "b1"
    assert await benchmarks.begin("b3", apart, {}) == "b3"
    assert await benchmarks.get("b2") is None

    await benchmarks.end("b1", replicas, JobState.SUCCEEDED, {}, registration=None, learned={})
    assert await benchmarks.begin("b2", by_other_name, {}) == "b2"
    # A registration that comes to answer to gamma as well is another's for now.
    more = replace(apart, registrations=("three", "two"))
    assert (await benchmarks.turn("b3", more, caller=_CALLER, fields={})).outcome is TurnOutcome.LOST
    assert (await benchmarks.turn("b2", by_other_name, caller=_CALLER, fields={})).outcome == "RUNNING"


async def test_a_benchmark_lives_on_what_its_name_stands_for_now(store: Store) -> None:
    """The registration that it began with is replaced by another one meanwhile."""
    benchmarks = _benchmarks(store)
    await benchmarks.begin("b1", _ALPHA, {})
    moved = Measurable("alpha", ("replica",), ("alpha",))
    await benchmarks.turn("b1", moved, caller=_CALLER, fields={})

    await store.redis.delete(store.keys.of("benchmarking", "alpha"))  # as its TTL does
    alive = await benchmarks.get("b1")
    await store.redis.delete(store.keys.of("benchmarking", "replica"))
    dead = await benchmarks.get("b1")

    assert alive is not None
    assert dead is not None
    assert (alive.interrupted, dead.interrupted) == (False, True)


async def test_a_benchmark_begins_and_ends_once_however_often_it_is_said(store: Store) -> None:
    async with FaultProxy(store.url) as proxy, open_store(proxy.url, fail_fast=True) as spoiled:
        benchmarks = _benchmarks(spoiled)
        await benchmarks.begin("b0", _OTHER, {})
        await benchmarks.end("b0", _OTHER, JobState.SUCCEEDED, {}, registration=None, learned={})
        proxy.spoil(Fault.DROP_REPLY, name="EVALSHA")
        assert await benchmarks.begin("b1", _ALPHA, {}) == "b1"
        assert proxy.spoiled
        assert await benchmarks.begin("b2", _ALPHA, {}) == "b1"
        proxy.spoil(Fault.DROP_REPLY, name="EVALSHA")
        await benchmarks.end("b1", _ALPHA, JobState.FAILED, {"a": "1"}, registration=None, learned={})
        assert proxy.spoiled
        await benchmarks.end("b1", _ALPHA, JobState.SUCCEEDED, {"a": "2"}, registration=None, learned={})

        record = await benchmarks.get("b1")
        assert record is not None
        assert (record.fields["state"], record.fields["a"], record.interrupted) == ("failed", "1", False)
        assert await benchmarks.begin("b2", _ALPHA, {}) == "b2"


def _benchmarks(store: Store) -> BenchmarkStore:
    return BenchmarkStore(store.redis, store.keys, HistorySettings(), 60.0)
