"""Requests that an api starts itself, with no router anywhere: nobody waits, and the fleet is known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.api.gateway.fastpath import FastPath
from services.api.gateway.unheard import Unheard
from shared.config import Settings
from shared.registry import Registration
from shared.states import JobState
from shared.store.fleet import BackendSample, GpuSample
from shared.store.records import KeyLimits
from tests.integration.test_gateway_relay import DONE, WORDS, chunk
from tests.kit.api_keys import made
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.faulty_server import SSE_HEAD, FaultyServer, faulty_server
from tests.kit.gateway import CHAT, STREAM, desk
from tests.kit.store_fixture import BOUND, GPU, HOLDER, MODEL, Store, new_job, open_store, order
from tests.kit.waiting import wait_until

FAST: Mapping[str, Any] = {"api": {"fast_path": True}}


def _models(*backends: FaultyServer, **changes: Any) -> list[Mapping[str, Any]]:
    names = (MODEL, "beta")
    return [
        {"name": name, "url": backend.url, "vram_gb": 2, "slots": 4, "agent_types": ["Chat"], **changes}
        for name, backend in zip(names, backends, strict=False)
    ]


async def _seen(store: Store, *models: str, pressure: str = "normal", seq: int = 1) -> None:
    """A monitor saw these models resident on a card of 24 GB with room."""
    memory = {"memory_total_mb": "24576", "memory_used_mb": "12288", "interval_ms": "60000"}
    full = str(int(pressure == "critical"))
    level = {"pressure": pressure, "full": full, "thermal": "normal", "effective_utilization": "0.5"}
    await store.fleet.publish_gpu(GpuSample(GPU, "b1", seq, 0, memory, level), ttl_s=60)
    for name in models:
        seen = {"residence": "resident", "gpu": GPU, "backend_running": "0", "backend_waiting": "0"}
        await store.fleet.publish_backend(BackendSample(name, "b1", seq, 0, {**seen, "host": "host"}))


async def _decisions(store: Store) -> list[Mapping[str, str]]:
    found: Any = await store.redis.xrange(store.keys.decisions)
    return [fields for _, fields in found]


async def test_it_is_answered_without_a_router_and_its_decision_is_in_the_stream(
    store: Store, tmp_path: Path
) -> None:
    async with (
        faulty_server(SSE_HEAD, *WORDS) as backend,
        desk(store, tmp_path, models=_models(backend), **FAST) as api,
    ):
        await _seen(store, MODEL)
        answers = [await api.post(body) for body in (CHAT, {**CHAT, "model": "auto:Chat"}, STREAM)]
        jobs = [await api.ended(answer.headers["x-orchestrator-job-id"]) for answer in answers]
        instance = api.state.gateway.holder.rpartition(".")[0]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[2].text.endswith(DONE.decode())
    assert {job["state"] for job in jobs} == {"succeeded"}
    decisions = await _decisions(store)
    assert [(one["action"], one["model"], one["router"]) for one in decisions] == [
        ("dispatch", MODEL, instance)
    ] * 3
    assert decisions[0]["reason"] == answers[0].headers["x-orchestrator-reason"] == jobs[0]["decision_reason"]
    assert "inputs" in decisions[0]
    assert (await store.model())["in_flight"] == "0"


async def test_what_it_runs_itself_counts_in_its_next_decision(store: Store, tmp_path: Path) -> None:
    async with (
        faulty_server(SSE_HEAD, chunk("one"), end="hang") as first,
        faulty_server(SSE_HEAD, chunk("two"), end="hang") as second,
        desk(store, tmp_path, models=_models(first, second), **FAST) as api,
    ):
        await _seen(store, MODEL, "beta")
        asked = [asyncio.create_task(api.post({**STREAM, "model": "auto:Chat"})) for _ in range(4)]
        await wait_until(lambda: len(first.requests) + len(second.requests) == 4, "all are asked")
        assert (len(first.requests), len(second.requests)) == (2, 2)
        for task in asked:
            task.cancel()
        await wait_until(lambda: not api.state.gateway.open_requests, "all are over")


async def test_more_than_fit_wait_for_the_routers(store: Store, tmp_path: Path) -> None:
    async with (
        faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend,
        desk(store, tmp_path, models=_models(backend, slots=1), **FAST) as api,
    ):
        await _seen(store, MODEL)
        asked = [api.asks(STREAM) for _ in range(3)]

        async def one_runs() -> bool:
            return await store.jobs.counts() == (2, 1)

        await wait_until(one_runs, "one runs and two wait")
        for task in asked:
            task.cancel()
        await wait_until(lambda: not api.state.gateway.open_requests, "all are over")


async def test_nothing_starts_at_a_critical_level_nor_once_it_came(store: Store, tmp_path: Path) -> None:
    async with faulty_server(SSE_HEAD, *WORDS) as backend:
        async with desk(store, tmp_path, models=_models(backend), **FAST) as api:
            await _seen(store, MODEL)
            assert (await api.post(CHAT)).status == 200
            # Its picture of the fleet is some milliseconds old now: the script knows better.
            await _seen(store, MODEL, pressure="critical", seq=2)
            asked = api.asks(CHAT)
            job_id = await api.waiting()
            asked.cancel()
            await api.ended(job_id)

        assert len(backend.requests) == 1


async def test_whoever_cancels_the_job_ends_the_request(store: Store, tmp_path: Path) -> None:
    async with (
        faulty_server(SSE_HEAD, chunk("one"), end="hang") as backend,
        desk(store, tmp_path, models=_models(backend), **FAST) as api,
    ):
        await _seen(store, MODEL)
        asked = api.asks(STREAM)
        await wait_until(lambda: backend.requests, "the backend is asked")
        (job,) = await store.jobs.list_newest(state=JobState.RUNNING, limit=2)
        await store.jobs.cancel(job.job_id, "no longer needed")
        answer = await asked

        assert "cancelled" in answer.text
        assert (await api.ended(job.job_id))["state"] == "cancelled"
        await asyncio.wait_for(backend.left.wait(), 10)


async def test_a_dead_backend_is_left_to_the_routers(store: Store, tmp_path: Path) -> None:
    async with faulty_server(SSE_HEAD, *WORDS) as backend:
        dead = {"name": "beta", "url": "http://127.0.0.1:9", "vram_gb": 2, "agent_types": ["Chat"]}
        async with desk(store, tmp_path, models=[dead, *_models(backend)], **FAST) as api:
            await _seen(store, "beta")
            await store.redis.hset(store.keys.of("gpu_level", GPU), "seq", "0")  # as the desk's claims say
            unloaded = {"residence": "unloaded", "gpu": GPU, "host": "host"}
            await store.fleet.publish_backend(BackendSample(MODEL, "b1", 1, 0, unloaded))
            asked = api.asks({**CHAT, "model": "auto:Chat"})
            await api.grant(backend.url)
            answer = await asked

    assert (answer.status, answer.headers["x-orchestrator-model"]) == (200, MODEL)
    kinds = await store.kinds(answer.headers["x-orchestrator-job-id"])
    assert kinds == ["queued", "started", "retried", "started", "succeeded"]


async def test_a_start_that_nobody_heard_of_gives_its_slot_back(store: Store) -> None:
    await store.set_holder(alive=True)
    await store.jobs.submit(new_job(attached_to=HOLDER), bound=BOUND, start=order())
    unheard = Unheard(store.jobs)
    unheard.cancel("j1")

    async def over() -> bool:
        return await store.state() == "cancelled"

    await wait_until(over, "it is over")
    assert (await store.model())["in_flight"] == "0"
    await unheard.aclose()


async def test_a_start_whose_replies_were_lost_gives_its_slot_back(store: Store, tmp_path: Path) -> None:
    """The first reply and that of its repetition: the client was told that nothing was accepted."""
    async with (
        FaultProxy(store.url) as proxy,
        open_store(proxy.url, fail_fast=True) as apart,
        faulty_server(SSE_HEAD, *WORDS) as backend,
        desk(apart, tmp_path, models=_models(backend), **FAST) as api,
    ):
        await _seen(apart, MODEL)
        assert (await api.post(CHAT)).status == 200
        proxy.spoil(Fault.DROP_REPLY, name="EVALSHA", times=2)
        assert (await api.post(CHAT)).status == 503

        async def free() -> bool:
            return await apart.jobs.counts() == (0, 0)

        await wait_until(free, "its slot is free, long before its lease is swept", timeout_s=12)
        assert (await apart.model())["in_flight"] == "0"


async def test_a_key_at_its_limit_leaves_the_fast_path_to_others(store: Store) -> None:
    await store.fleet.register([Registration(name=MODEL, port=1001, vram_gb=2.0, slots=4)])
    await _seen(store, MODEL)
    await store.set_holder(alive=True)
    fast = FastPath(store.jobs, store.fleet, Settings(), lambda: "api-1")
    named: dict[str, Any] = {
        "fields": {"agent_type": "", "model": MODEL},
        "target": MODEL,
        "attached_to": HOLDER,
    }
    limits = KeyLimits("team", in_flight=0)

    limited, _ = await fast.submit(new_job("j1", limits=limits, **named), bound=BOUND)
    started, _ = await fast.submit(new_job("j2", **named), bound=BOUND)

    assert [str(one.outcome) for one in (limited, started)] == ["LIMITED", "STARTED"]


async def test_a_changed_registration_is_seen_at_the_next_decision(store: Store) -> None:
    await store.fleet.register([Registration(name=MODEL, port=1001, vram_gb=2.0, slots=4)])
    await _seen(store, MODEL)
    await store.set_holder(alive=True)
    fast = FastPath(store.jobs, store.fleet, Settings(), lambda: "api-1")
    urls: list[str] = []

    async def submit(job_id: str) -> str | None:
        job = new_job(job_id, attached_to=HOLDER, fields={"agent_type": "", "model": MODEL}, target=MODEL)
        _, start = await fast.submit(job, bound=BOUND)
        return None if start is None else start.model.url

    async def started() -> bool:
        urls.append(await submit(f"j{len(urls)}") or "")
        if urls[-1]:
            return True
        await store.jobs.cancel(f"j{len(urls) - 1}", "it waits for a router, and others behind it")
        return False

    assert await started()
    await store.fleet.register([Registration(name=MODEL, port=1002, vram_gb=2.0, slots=4)])
    await wait_until(started, "it decides again")

    assert (urls[0], urls[-1]) == ("http://127.0.0.1:1001", "http://127.0.0.1:1002")


async def test_who_takes_one_of_the_last_slots_says_so(store: Store) -> None:
    """The end of any other may be recorded a moment later, together with others."""
    await store.fleet.register([Registration(name=MODEL, port=1001, vram_gb=2.0, slots=4)])
    await _seen(store, MODEL)
    await store.set_holder(alive=True)
    fast = FastPath(store.jobs, store.fleet, Settings(), lambda: "api-1")
    spare: list[bool] = []
    for number in range(4):
        job = new_job(
            f"j{number}", attached_to=HOLDER, fields={"agent_type": "", "model": MODEL}, target=MODEL
        )
        _, start = await fast.submit(job, bound=BOUND)
        assert start is not None
        fast.pictures.took(MODEL)
        spare.append(start.spare)

    assert spare == [True, True, False, False]


async def test_a_cancel_right_after_the_answer_changes_nothing(store: Store, tmp_path: Path) -> None:
    """The end is about to be recorded: there is nothing left to cut, and others must not suffer from it."""
    async with (
        faulty_server(SSE_HEAD, *WORDS) as backend,
        desk(store, tmp_path, models=_models(backend, slots=64), **FAST) as api,
    ):
        await _seen(store, MODEL)
        for _ in range(20):
            answer = await api.post(CHAT)
            assert answer.status == 200
            await store.jobs.cancel(answer.headers["x-orchestrator-job-id"], "too late")
        last = await api.post(CHAT)
        job = await api.ended(last.headers["x-orchestrator-job-id"])

    assert job["state"] == JobState.SUCCEEDED


async def test_a_key_with_one_request_at_a_time_may_ask_again_at_once(store: Store, tmp_path: Path) -> None:
    key = await made(store, "alice", in_flight=1)
    async with (
        faulty_server(SSE_HEAD, *WORDS) as backend,
        desk(store, tmp_path, models=_models(backend, slots=64), **FAST) as api,
    ):
        await _seen(store, MODEL)
        answers = [await api.post(CHAT, Authorization=f"Bearer {key}") for _ in range(10)]

    assert [answer.status for answer in answers] == [200] * 10


async def test_the_only_slot_is_free_again_for_who_asks_next(store: Store, tmp_path: Path) -> None:
    """There is no router here that would start what had to wait."""
    async with (
        faulty_server(SSE_HEAD, *WORDS) as backend,
        desk(store, tmp_path, models=_models(backend, slots=1), **FAST) as api,
    ):
        await _seen(store, MODEL)
        answers = [await asyncio.wait_for(api.post(CHAT), 30) for _ in range(10)]

    assert [answer.status for answer in answers] == [200] * 10
