"""The whole stack over a fake NVIDIA driver: the real binding reads it, and the gate follows what it says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from shared.store.records import StreamEntry
from shared.store.streams import read_range
from tests.kit.fake_nvml import GB, build, require_compiler
from tests.kit.llama_server import LlamaServer
from tests.kit.nvml_stack import SIZES, Driver, nvml_stack, three_models
from tests.kit.stack import Json, Stack
from tests.kit.waiting import wait_until

CARD = "host/0"
OTHER = "host/1"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_compiler()
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path) -> Driver:
    cards = Driver(library, tmp_path / "cards")
    cards.set(0, use=0.6, temp=50)
    return cards


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str, driver: Driver) -> AsyncIterator[Stack]:
    async with three_models() as models, nvml_stack(tmp_path, redis_url, driver, models) as stack:
        await level(stack, pressure="normal", thermal="normal")
        yield stack


async def level(stack: Stack, gpu: str = CARD, **wanted: str) -> Mapping[str, str]:
    async def reached() -> Mapping[str, str] | None:
        found = await stack.fleet.level(gpu)
        return found if wanted.items() <= found.items() else None

    return await wait_until(reached, f"GPU {gpu} is {wanted}", timeout_s=60)


async def submit(stack: Stack, *names: str) -> list[str]:
    return [await stack.submit(prompt="hi", model=name, max_tokens=4) for name in names]


async def held(stack: Stack, job_id: str, code: str) -> Json:
    async def waiting() -> Json | None:
        job = await stack.job(job_id)
        decision = job["decision"] or {}
        return job if (decision.get("action"), decision.get("code")) == ("hold", code) else None

    return await wait_until(waiting, f"job {job_id} is held for {code}")


async def all_succeed(stack: Stack, jobs: Sequence[str]) -> None:
    ended = await asyncio.gather(*(stack.ended(job) for job in jobs))
    assert [(job["state"], job["tries"]) for job in ended] == [("succeeded", 0)] * len(jobs)


async def gpu_samples(stack: Stack) -> list[StreamEntry]:
    return await read_range(stack.redis, stack.keys.gpu_samples, count=10_000)


async def more_samples(stack: Stack, count: int) -> None:
    before = len(await gpu_samples(stack))

    async def enough() -> bool:
        return len(await gpu_samples(stack)) >= before + count

    await wait_until(enough, f"{count} more samples", timeout_s=60)


async def test_at_90_percent_the_smallest_resident_serves_and_the_bigger_ones_wait_with_their_reason(
    stack: Stack, driver: Driver
) -> None:
    driver.set(use=0.90)
    await level(stack, pressure="critical", full="0")

    waiting = await submit(stack, "beta", "gamma")
    decisions = [(await held(stack, job, "memory_critical"))["decision"] for job in waiting]
    await all_succeed(stack, await submit(stack, "alpha"))

    assert all("90" in decision["reason"] for decision in decisions)
    assert all("alpha" in decision["reason"] for decision in decisions)
    assert [(await stack.job(job))["state"] for job in waiting] == ["queued", "queued"]
    driver.set(use=0.60)
    await all_succeed(stack, waiting)


async def test_at_96_percent_all_wait_at_90_the_smallest_goes_on_and_at_60_all_do(
    stack: Stack, driver: Driver
) -> None:
    driver.set(use=0.96)
    await level(stack, pressure="critical", full="1")

    alpha, beta, gamma = jobs = await submit(stack, *SIZES)
    for job in jobs:
        assert "96" in (await held(stack, job, "memory_full"))["decision"]["reason"]

    driver.set(use=0.90)
    await all_succeed(stack, [alpha])
    assert [(await held(stack, job, "memory_critical"))["state"] for job in (beta, gamma)] == ["queued"] * 2

    driver.set(use=0.60)
    await all_succeed(stack, [beta, gamma])


async def test_at_86_degrees_all_wait_until_it_has_cooled_by_the_margin(stack: Stack, driver: Driver) -> None:
    driver.set(temp=86)
    await level(stack, thermal="critical")

    jobs = await submit(stack, *SIZES)
    for job in jobs:
        assert "86 C" in (await held(stack, job, "heat_critical"))["decision"]["reason"]
    driver.set(temp=84)
    await more_samples(stack, 5)
    assert [(await stack.job(job))["state"] for job in jobs] == ["queued"] * 3

    driver.set(temp=60)
    await all_succeed(stack, jobs)


async def test_noise_inside_the_hysteresis_changes_no_level_and_holds_nothing_anew(
    stack: Stack, driver: Driver
) -> None:
    driver.set(use=0.86, temp=81)
    before = await level(stack, pressure="critical", thermal="throttling")
    (job,) = await submit(stack, "beta")
    await held(stack, job, "memory_critical")
    first = len(await gpu_samples(stack))
    decisions = await stack.redis.xlen(stack.keys.decisions)

    for use, heat in ((0.83, 78), (0.87, 82), (0.825, 84), (0.90, 79), (0.84, 85)):
        driver.set(use=use, temp=heat)
        await more_samples(stack, 3)

    after = await stack.fleet.level(CARD)
    seen = (await gpu_samples(stack))[first:]
    assert len({entry.fields["temperature_c"] for entry in seen}) == 5
    assert not any("level_changed" in entry.fields for entry in seen)
    assert (after["seq"], after["pressure_since_ms"]) == (before["seq"], before["pressure_since_ms"])
    assert (await stack.event_types(job)).count("job.held") == 1
    assert await stack.redis.xlen(stack.keys.decisions) == decisions


async def test_a_monitor_killed_at_critical_leaves_the_gate_shut_until_it_is_back_with_good_readings(
    tmp_path: Path, redis_url: str, driver: Driver
) -> None:
    """What the card does while nobody looks counts for nothing, also once the last sample has expired."""
    async with three_models() as models, nvml_stack(tmp_path, redis_url, driver, models) as stack:
        driver.set(use=0.96)
        await level(stack, full="1")
        jobs = await submit(stack, *SIZES)
        for job in jobs:
            await held(stack, job, "memory_full")
        stack.kill("monitor")
        driver.set(use=0.60)

        async def expired() -> bool:
            return not await stack.redis.exists(stack.keys.of("gpu", CARD))

        await wait_until(expired, "the last sample is gone")
        late = await submit(stack, "alpha")
        await held(stack, late[0], "memory_full")
        assert [(await stack.job(job))["state"] for job in jobs] == ["queued"] * 3

        stack.start("monitor", environ=driver.environ)
        await all_succeed(stack, [*jobs, *late])


async def test_two_cards_a_critical_one_holds_only_its_own_models(
    tmp_path: Path, redis_url: str, driver: Driver
) -> None:
    driver.set(1, use=0.3, temp=50, name="NVIDIA GeForce RTX 3060")
    gpus = {"alpha": "GPU-fake-0", "beta": "GPU-fake-1", "gamma": "GPU-fake-1"}
    async with (
        three_models(**gpus) as models,
        nvml_stack(tmp_path, redis_url, driver, models) as stack,
    ):
        driver.set(1, use=0.97)
        await level(stack, OTHER, full="1")
        assert (await stack.fleet.level(CARD))["pressure"] == "normal"

        waiting = await submit(stack, "beta", "gamma")
        decisions = [(await held(stack, job, "memory_full"))["decision"] for job in waiting]
        await all_succeed(stack, await submit(stack, "alpha"))
        assert all(OTHER in decision["reason"] for decision in decisions)

        driver.set(1, use=0.3)
        await all_succeed(stack, waiting)


async def test_a_lost_card_keeps_its_gate_as_it_was_and_the_other_one_serves(
    tmp_path: Path, redis_url: str, driver: Driver
) -> None:
    driver.set(1, use=0.3, temp=50)
    async with (
        three_models(alpha="GPU-fake-0", beta="GPU-fake-1", gamma="GPU-fake-1") as models,
        nvml_stack(tmp_path, redis_url, driver, models) as stack,
    ):
        driver.set(1, temp=88)
        await level(stack, OTHER, thermal="critical")
        driver.set(1, temp=50)
        driver.lose(1)
        await wait_until(lambda: "GPU 1 is lost" in stack.output("monitor"), "the loss is said")
        (waiting,) = await submit(stack, "beta")
        await held(stack, waiting, "heat_critical")
        await all_succeed(stack, await submit(stack, "alpha"))

        driver.set(1, temp=50)
        await all_succeed(stack, [waiting])
        assert "GPU 1 is back" in stack.output("monitor")


@pytest.mark.llamacpp
async def test_models_given_by_port_are_placed_by_their_processes_with_their_memory(
    tmp_path: Path, redis_url: str, driver: Driver, small_llama: LlamaServer, large_llama: LlamaServer
) -> None:
    """Beside a process that is nobody's, and one whose memory the driver doesn't tell."""
    driver.set(0, compute=f"{small_llama.pid}:{2 * GB},{os.getppid()}:{GB}")
    driver.set(1, use=0.3, temp=50, compute=f"{large_llama.pid}:-")
    models = [
        {"name": "small", "port": int(small_llama.url.rpartition(":")[2]), "vram_gb": 2.0},
        {"name": "large", "port": int(large_llama.url.rpartition(":")[2]), "vram_gb": 6.0},
    ]
    async with nvml_stack(tmp_path, redis_url, driver, models) as stack:

        async def placed() -> bool:
            small, large = [await stack.redis.hgetall(stack.keys.model(name)) for name in ("small", "large")]
            return (small.get("gpu"), large.get("gpu")) == (CARD, OTHER) and small.get("memory_mb") == "2048"

        await wait_until(placed, "both are placed by their processes")
        assert await stack.redis.hget(stack.keys.model("large"), "memory_mb") is None

        driver.set(1, use=0.97)
        await level(stack, OTHER, full="1")
        (waiting,) = await submit(stack, "large")
        await held(stack, waiting, "memory_full")
        await all_succeed(stack, await submit(stack, "small"))
        driver.set(1, use=0.3)
        await all_succeed(stack, [waiting])
