"""How often a model is asked for, as claims count it."""

from __future__ import annotations

import math

import pytest

from shared.config import parse
from shared.registry import Registration
from shared.snapshots import snapshot_of
from tests.kit.store_fixture import MODEL, Store


async def _rates(store: Store) -> tuple[float, float]:
    fields = await store.model()
    return float(fields["rate_10min"]), float(fields["rate_6h"])


async def test_each_claim_counts_and_earlier_ones_fade(store: Store) -> None:
    await store.start("a", "a")
    assert await _rates(store) == pytest.approx((1 / 600, 1 / 21_600))
    await store.redis.hset(store.keys.model(MODEL), "rate_ms", str(await store.now_ms() - 600_000))
    await store.start("b", "b")
    expected = (1 + math.exp(-1)) / 600, (1 + math.exp(-1 / 36)) / 21_600
    assert await _rates(store) == pytest.approx(expected, rel=1e-3)


async def test_a_retry_is_no_new_demand(store: Store) -> None:
    await store.start("a", "a")
    before = await _rates(store)
    await store.fail("a")
    assert (await store.claim("a", "again")).attempt == 2
    assert await _rates(store) == before


async def test_a_replayed_claim_counts_once(store: Store) -> None:
    await store.start("a", "a")
    before = await _rates(store)
    assert (await store.claim("a", "a")).attempt == 1
    assert await _rates(store) == before


async def test_the_snapshot_shows_rates_last_use_and_queues(store: Store) -> None:
    await store.fleet.register([Registration(name=MODEL, port=1, agent_types=("Chat",))])
    await store.start("a", "a")
    await store.submit("b")
    await store.submit("c", caller="ann")
    seen = snapshot_of(await store.fleet.view(heads=4), parse({}, "test"))
    model = seen.models[MODEL]
    assert model.rate_6h == pytest.approx(1 / 21_600, rel=1e-3)
    assert model.idle_s is not None
    assert model.idle_s < 60
    (backlog,) = seen.backlogs
    assert (backlog.target, backlog.waiting, backlog.head_age_s is not None) == ("auto:Chat", 2, True)
