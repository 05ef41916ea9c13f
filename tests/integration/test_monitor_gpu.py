"""GPU samples and levels: from a GPU endpoint over HTTP, through the monitor, into a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from services.monitor.host import HostView
from services.monitor.outbox import Outbox
from services.monitor.sampler import GpuSampler
from shared.config import Settings
from shared.gpu.simulated import SimulatedSource
from tests.kit.monitor import (
    GPU,
    TOTAL_MB,
    GpuEndpoint,
    gpu,
    latest,
    level,
    log_lines,
    monitor_settings,
    read_again,
    running_monitor,
    samples,
)
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until


@pytest.fixture
async def gpus() -> AsyncIterator[GpuEndpoint]:
    async with GpuEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def settings(redis_url: str, gpus: GpuEndpoint) -> Settings:
    return monitor_settings(redis_url, gpus.port)


async def test_a_reading_lands_in_the_stream_the_hash_and_the_level_hash(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    gpus.cards = [gpu(use=0.6, temperature_c=66.0)]
    async with running_monitor(settings):
        levels = await level(store, pressure="normal", thermal="warning")
        hashed = await latest(store)
        entry = (await samples(store))[0]

    expected = {
        "gpu": GPU,
        "host": "host",
        "index": "0",
        "uuid": "GPU-test-0",
        "name": "Test GPU",
        "source": "simulated",
        "simulated": "1",
        "memory_total_mb": "24576",
        "memory_used_mb": "14745.6",
        "memory_free_mb": "9830.4",
        "gpu_utilization_percent": "12.5",
        "effective_utilization": "0.6",
        "temperature_c": "66",
        "power_draw_w": "120",
        "power_limit_w": "350",
        "fan_percent": "40",
        "thermal_slowdown": "0",
        "interval_ms": "100",
        "pressure": "normal",
        "full": "0",
        "thermal": "warning",
    }
    assert {name: entry.fields.get(name) for name in expected} == expected
    assert {name: hashed.get(name) for name in expected} == expected
    assert list(entry.fields)[:3] == ["v", "type", "gpu"]
    assert 0 <= int(entry.fields["age_ms"]) < 10_000
    assert (levels["full"], levels["effective_utilization"]) == ("0", "0.6")
    assert int(levels["pressure_since_ms"]) == int(entry.fields["ts_ms"])


async def test_every_gpu_has_its_own_sample_and_its_own_levels(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    gpus.cards = [gpu(0, use=0.3), gpu(1, use=0.9)]
    async with running_monitor(settings):
        await level(store, "host/0", pressure="low")
        await level(store, "host/1", pressure="critical")


async def test_what_the_card_does_not_tell_is_left_out(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    unread = ("memory_free_mb", "temperature_c", "fan_percent", "thermal_slowdown", "utilization_percent")
    gpus.cards = [{name: value for name, value in gpu().items() if name not in unread}]
    async with running_monitor(settings):
        levels = await level(store, pressure="unknown", thermal="unknown")
        sample = await latest(store)

    assert sample.keys().isdisjoint(
        {"memory_used_mb", "memory_free_mb", "effective_utilization", "temperature_c", "fan_percent"}
        | {"thermal_slowdown", "gpu_utilization_percent", "clocks_event_reasons"}
    )
    assert sample["memory_total_mb"] == "24576"
    assert "effective_utilization" not in levels


async def test_levels_rise_at_once_and_fall_only_below_the_margin(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    async with running_monitor(settings):
        await level(store, pressure="low")
        gpus.cards = [gpu(use=0.86)]
        critical = await level(store, pressure="critical")
        gpus.cards = [gpu(use=0.83)]
        await read_again(gpus, store)
        held = await store.fleet.level(GPU)
        assert int(held["read_ms"]) > int(critical["read_ms"])
        assert held == {**critical, "effective_utilization": "0.83", "read_ms": held["read_ms"]}
        gpus.cards = [gpu(use=0.80)]
        high = await level(store, pressure="high")
    assert int(high["seq"]) == int(critical["seq"]) + 1


async def test_a_full_card_and_a_thermal_slowdown_are_said(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    gpus.cards = [gpu(use=0.96, thermal_slowdown=True)]
    async with running_monitor(settings):
        await level(store, pressure="critical", full="1", thermal="throttling")


async def test_thresholds_come_from_the_settings(redis_url: str, gpus: GpuEndpoint, store: Store) -> None:
    settings = monitor_settings(
        redis_url, gpus.port, memory_thresholds={"low": 0.1, "normal": 0.2}, thermal_thresholds={"normal": 45}
    )
    async with running_monitor(settings):
        await level(store, pressure="high", thermal="warning")


async def test_one_line_tells_each_change_of_level(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    with log_lines() as lines:
        async with running_monitor(settings):
            await level(store, pressure="low", thermal="normal")
            gpus.cards = [gpu(use=0.902)]
            await level(store, pressure="critical")
            gpus.cards = [gpu(use=0.902, temperature_c=81)]
            await level(store, thermal="throttling")
            await read_again(gpus, store)
    assert [line.removeprefix("GPU host/0 ") for line in lines if "GPU host/0" in line] == [
        "memory pressure unknown -> low (30.0 % of 24.0 GB used), thermal unknown -> normal (50 C)",
        "memory pressure low -> critical (90.2 % of 24.0 GB used), thermal normal",
        "memory pressure critical, thermal normal -> throttling (81 C)",
    ]


async def test_a_restarted_monitor_goes_on_where_the_last_one_stopped(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    """0.83 is 'high' by itself, but not for a card that was critical and has not fallen by the margin."""
    gpus.cards = [gpu(use=0.86)]
    async with running_monitor(settings):
        before = await level(store, pressure="critical")
    gpus.cards = [gpu(use=0.83)]
    async with running_monitor(settings):
        await read_again(gpus, store, times=4)
        after = await store.fleet.level(GPU)
    assert (after["pressure"], after["seq"]) == ("critical", before["seq"])
    assert after["pressure_since_ms"] == before["pressure_since_ms"]


async def test_the_gpus_are_not_judged_before_the_models_are_known(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    """Else the pool of a vLLM would look like memory pressure for a moment."""
    host = HostView("host", "127.0.0.1")
    outbox = Outbox(store.fleet, "boot", ttl_s=5)
    async with aiohttp.ClientSession() as http:
        source = SimulatedSource(http, f"http://127.0.0.1:{gpus.port}")
        sampling = asyncio.create_task(GpuSampler(source, store.fleet, outbox, host, settings).run())
        for _ in range(20):
            await store.redis.ping()
        assert gpus.reads == 0
        host.models_tried.set()
        await wait_until(lambda: gpus.reads > 0, "a first reading")
        sampling.cancel()
        await asyncio.wait({sampling})


async def test_unreadable_stored_levels_are_said_and_replaced(settings: Settings, store: Store) -> None:
    await store.redis.hset(store.keys.of("gpu_level", GPU), "pressure", "enormous")
    with log_lines() as lines:
        async with running_monitor(settings):
            await level(store, pressure="low")
    assert any("enormous" in line for line in lines)


async def test_when_readings_stop_the_sample_will_expire_and_the_level_holds(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    gpus.cards = [gpu(use=0.9)]
    async with running_monitor(settings):
        await level(store, pressure="critical")
        with log_lines() as lines:
            gpus.answers.clear()
            await wait_until(lambda: any("no GPU readings" in line for line in lines), "readings stop")
            held = await store.fleet.level(GPU)
            sample_ttl: Any = await store.redis.pttl(store.keys.of("gpu", GPU))
            gpus.answers.set()
    assert 0 < sample_ttl < 5000 - 1500
    assert await store.redis.pttl(store.keys.of("gpu_level", GPU)) == -1
    assert held["pressure"] == "critical"


async def test_a_source_that_fails_and_comes_back_is_said_once_each(
    gpus: GpuEndpoint, settings: Settings, store: Store
) -> None:
    good = gpus.cards
    with log_lines() as lines:
        async with running_monitor(settings):
            await level(store, pressure="low")
            gpus.cards = [{"index": 0, "simulated": False}]
            reads = gpus.reads
            await wait_until(lambda: gpus.reads > reads + 3, "some readings that can't be used")
            gpus.cards = good
            await read_again(gpus, store)
    assert len([line for line in lines if "no GPU readings" in line and "unreadable" in line]) == 1
    assert lines.count("GPU readings are back") == 1


async def test_a_source_that_is_none_is_said_and_gives_no_samples(
    redis_url: str, gpus: GpuEndpoint, store: Store
) -> None:
    settings = monitor_settings(redis_url, gpus.port, gpu={"source": "none"})
    with log_lines() as lines:
        async with running_monitor(settings):

            async def alive() -> bool:
                return [record.instance for record in await store.fleet.services()] == ["monitor-host"]

            await wait_until(alive, "the monitor is up")
            await wait_until(lambda: any("no GPU readings" in line for line in lines), "it is said")
    assert (await samples(store), gpus.reads) == ([], 0)
    assert len([line for line in lines if "no GPU readings" in line]) == 1


@pytest.mark.parametrize("use", [0.5, 0.7, 0.85, 0.95])
async def test_a_level_begins_exactly_at_its_bound(
    gpus: GpuEndpoint, settings: Settings, store: Store, use: float
) -> None:
    gpus.cards = [gpu(memory_free_mb=round(TOTAL_MB * (1 - use), 1))]
    begins = {0.5: ("normal", "0"), 0.7: ("high", "0"), 0.85: ("critical", "0"), 0.95: ("critical", "1")}
    async with running_monitor(settings):
        pressure, full = begins[use]
        await level(store, pressure=pressure, full=full)
