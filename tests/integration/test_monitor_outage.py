"""Redis away and back: what the monitor read meanwhile."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from services.monitor.outbox import KEPT, Outbox, Taken
from shared.decision.levels import LevelState
from shared.store.records import StreamEntry
from shared.store.server import EmbeddedRedis
from tests.kit.monitor import (
    GPU,
    INTERVAL_S,
    GpuEndpoint,
    gpu,
    latest,
    level,
    monitor_settings,
    read_again,
    running_monitor,
    samples,
)
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import Store, open_store
from tests.kit.waiting import wait_until


async def test_redis_away_and_back_gets_the_newest_first_and_then_what_waited_in_order(
    tmp_path: Path,
) -> None:
    """Each reading is 0.1 C warmer than the one before, which tells their order of taking."""
    with EmbeddedRedis(free_port(), tmp_path / "redis") as server:
        async with (
            GpuEndpoint() as gpus,
            open_store(server.url) as store,
            running_monitor(monitor_settings(server.url, gpus.port)),
        ):
            gpus.heats = True
            await level(store, pressure="low")
            await asyncio.to_thread(server.stop)
            reads = gpus.reads
            gpus.cards = [gpu(use=0.86, temperature_c=55.0)]
            await wait_until(lambda: gpus.reads >= reads + 4, "readings that rise while Redis is away")
            gpus.cards = [gpu(use=0.60, temperature_c=60.0)]
            await wait_until(lambda: gpus.reads >= reads + 14, "readings that fall while Redis is away")
            await asyncio.to_thread(server.start)

            async def delivered() -> list[StreamEntry] | None:
                found = [entry for entry in await samples(store) if "late" in entry.fields]
                return found if len(found) >= 10 else None

            late = await wait_until(delivered, "what waited is delivered")
            await read_again(gpus, store)
            entries = await samples(store)
            held = await store.fleet.level(GPU)
            hashed = await latest(store)

    heat = [float(entry.fields["temperature_c"]) for entry in late]
    taken = [int(entry.fields["ts_ms"]) for entry in late]
    assert (heat, taken) == (sorted(heat), sorted(taken))
    apart = [after - before for before, after in pairwise(taken)]
    # After a standstill one may follow close upon another; told by their delivery, all of them would.
    assert median(apart) >= INTERVAL_S * 1000 * 0.5, apart
    assert any("pressure" in entry.fields for entry in entries)
    assert not any("pressure" in entry.fields for entry in late)
    first_back = entries[entries.index(late[0]) - 1]
    assert float(first_back.fields["temperature_c"]) > heat[-1]
    assert "critical" not in {entry.fields.get("pressure") for entry in entries}
    assert (held["pressure"], hashed["pressure"]) == ("normal", "normal")
    assert float(hashed["temperature_c"]) > heat[-1]


async def test_no_more_than_a_hundred_readings_wait_for_redis(store: Store) -> None:
    outbox = Outbox(store.fleet, "boot", ttl_s=5)
    started = time.monotonic()
    for number in range(150):
        fields = {"temperature_c": str(number)}
        outbox.put(Taken(GPU, started - 15 + number * 0.1, fields, LevelState().to_fields()))
    publishing = asyncio.create_task(outbox.run())

    async def published() -> bool:
        return len(await samples(store)) >= KEPT

    await wait_until(published, "what waited is published")
    publishing.cancel()
    order = [int(entry.fields["temperature_c"]) for entry in await samples(store)]
    assert order == [149, *range(50, 149)]
