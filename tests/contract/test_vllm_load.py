"""How a vLLM server tells what it has to do: metrics, queue, KV cache; and what the probe makes of it.

On the real server (CPU build, ``make test-vllm``) and on the simulated one; told in ``docs/vllm.md``.
"""

from __future__ import annotations

import asyncio

import pytest

from shared.backends.errors import Saturated
from shared.states import Residence
from tests.kit.vllm_backends import VllmClient, caught_in_the_act
from tests.kit.waiting import wait_until


async def test_metrics_have_these_names_and_labels(vllm: VllmClient) -> None:
    await vllm.complete()
    seen: dict[str, set[frozenset[str]]] = {}
    for name, labels, _ in await vllm.metrics():
        keys = frozenset(pair.partition("=")[0] for pair in labels.split(",") if "=" in pair)
        seen.setdefault(name, set()).add(keys)

    usual = frozenset({"engine", "model_name"})
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total",
        "prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total",
        "prefix_cache_hits_total",
    ):  # fmt: skip
        assert seen[f"vllm:{name}"] == {usual}
    assert seen["vllm:engine_sleep_state"] == {usual | {"sleep_state"}}
    assert seen["vllm:num_requests_waiting_by_reason"] == {usual | {"reason"}}
    assert seen["vllm:request_success_total"] == {usual | {"finished_reason"}}
    assert seen["vllm:admission_rejections_total"] == {frozenset({"model_name", "reason"})}
    (config,) = seen["vllm:cache_config_info"]
    assert {"block_size", "num_gpu_blocks", "gpu_memory_utilization", "engine"} <= config
    for name in (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens",
    ):  # fmt: skip
        assert seen[f"vllm:{name}_count"] == seen[f"vllm:{name}_sum"] == {usual}
        assert seen[f"vllm:{name}_bucket"] == {usual | {"le"}}


async def test_histograms_have_these_buckets(vllm: VllmClient) -> None:
    await vllm.complete()
    edges: dict[str, list[str]] = {}
    for name, labels, _ in await vllm.metrics():
        if name.endswith("_bucket"):
            edges.setdefault(name, []).append(labels.split('le="')[1].partition('"')[0])

    tokens = [
        "1.0",
        "2.0",
        "5.0",
        "10.0",
        "20.0",
        "50.0",
        "100.0",
        "200.0",
        "500.0",
        "1000.0",
        "2000.0",
        "+Inf",
    ]
    assert edges["vllm:request_prompt_tokens_bucket"] == tokens
    assert edges["vllm:request_generation_tokens_bucket"] == tokens
    assert [len(edges[f"vllm:{name}_bucket"]) for name in (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds",
    )] == [23, 20, 22, 22]  # fmt: skip


async def test_what_is_served_is_counted(vllm: VllmClient) -> None:
    names = ("generation_tokens_total", "request_success_total", "request_prompt_tokens_count",
             "request_generation_tokens_sum", "time_to_first_token_seconds_count")  # fmt: skip
    before = [await vllm.metric(name) for name in names]
    done = await vllm.complete({"prompt": "the queue", "max_tokens": 20})
    after = [await vllm.metric(name) for name in names]

    assert done.output_tokens == 20
    assert [new - old for new, old in zip(after, before, strict=True)] == [20, 1, 1, 20, 1]


@caught_in_the_act
async def test_requests_beyond_its_width_wait_and_load_counts_all_of_them(vllm: VllmClient) -> None:
    async with vllm.inside(6, max_tokens=600) as tasks:
        await vllm.queued(4, 2)
        assert await vllm.get("/load") == {"server_load": 6}
        answers = await asyncio.gather(*tasks)

    assert {answer.output_tokens for answer in answers} == {600}
    await vllm.queued(0, 0)
    assert await vllm.get("/load") == {"server_load": 0}


async def test_the_seventh_is_refused_by_admission_control_as_saturated(vllm: VllmClient) -> None:
    rejected = await vllm.metric("admission_rejections_total")
    await vllm.operate("/pause?mode=keep")
    async with vllm.inside(vllm.server.max_queued, held=True):
        status, answer = await vllm.ask(prompt="hi", max_tokens=2)
        with pytest.raises(Saturated) as caught:
            await vllm.complete()

    error = answer["error"]
    assert (status, error["code"], error["type"]) == (503, 503, "Service Unavailable")
    assert "currently busy" in error["message"]
    assert caught.value.status == 503
    assert await vllm.metric("admission_rejections_total") == rejected + 2
    await vllm.operate("/resume")


async def test_a_full_kv_cache_preempts_the_last_one_and_all_are_answered(vllm: VllmClient) -> None:
    """Four answers of 1,000 tokens need 32 blocks of 128, and 23 can be had."""
    preempted = await vllm.metric("num_preemptions_total")
    async with vllm.inside(4, max_tokens=1000) as tasks:
        answers = await asyncio.gather(*tasks)

    assert {answer.output_tokens for answer in answers} == {1000}
    assert await vllm.metric("num_preemptions_total") > preempted
    await vllm.queued(0, 0)
    assert await vllm.metric("kv_cache_usage_perc") == 0.0


@caught_in_the_act
async def test_a_client_that_leaves_frees_its_place_at_once(vllm: VllmClient) -> None:
    async with vllm.inside(1, max_tokens=1900):
        await vllm.queued(1, 0)

    await vllm.loaded(0)
    await vllm.queued(0, 0)


@caught_in_the_act
async def test_the_probe_reads_queue_kv_use_and_slots(vllm: VllmClient) -> None:
    """Slots: what the KV cache holds of requests as long as the mean of those before."""
    before = await vllm.probe()
    async with vllm.inside(5, max_tokens=700) as tasks:
        await vllm.queued(4, 1)

        async def used() -> bool:
            return await vllm.metric("kv_cache_usage_perc") > 0.2

        await wait_until(used, "a fifth of the KV cache is used")
        busy = await vllm.probe(before.props)
        await asyncio.gather(*tasks)
    after = await vllm.probe(before.props)

    assert (before.residence, before.running, before.waiting, before.kv_use) == (
        Residence.RESIDENT,
        0,
        0,
        0.0,
    )
    assert (busy.running, busy.waiting, busy.error, busy.simulated) == (4, 1, None, vllm.server.simulated)
    assert busy.kv_use is not None
    assert 0.2 < busy.kv_use < 1.0
    assert (after.context_tokens, after.upstream_name) == (2048, "tiny")
    sums = [await vllm.metric(f"request_{kind}_tokens_sum") for kind in ("prompt", "generation")]
    served = await vllm.metric("request_prompt_tokens_count")
    assert after.slots == min(256, int(vllm.server.kv_tokens / (sum(sums) / served)))
