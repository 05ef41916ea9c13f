"""The buckets behind the forecast: what is sampled and claimed counts once, is kept and can be read back."""

from __future__ import annotations

import pytest

from shared.registry import Registration
from shared.store.fleet import BackendSample, GpuSample
from shared.store.history import History, MemoryBucket
from shared.store.records import FailKind
from tests.kit.store_fixture import GPU, MODEL, Store

_LEVEL = {"pressure": "low", "full": "0", "thermal": "normal"}
_DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
async def _looked_at(store: Store) -> None:
    """A model is registered and not there: all that is used is foreign."""
    await _place(store, "absent", None, "unloaded")


async def _sample(
    store: Store, seq: int, used_mb: str | None, *, age_ms: int | None = None, gpu: str = GPU, **more: str
) -> str:
    """By default each was taken 10 ms after the one before: of two in one millisecond the second is late."""
    age_ms = 1000 - 10 * seq if age_ms is None else age_ms
    fields = more if used_mb is None else {"memory_used_mb": used_mb, **more}
    outcome, _ = await store.fleet.publish_gpu(GpuSample(gpu, "boot", seq, age_ms, fields, _LEVEL), ttl_s=60)
    return outcome


async def _place(
    store: Store, name: str, gpu: str | None, residence: str = "resident", **fields: str
) -> None:
    await store.fleet.register([Registration(name=name, port=8080, vram_gb=2)])
    probe = {"residence": residence, "gpu": gpu, **fields}
    await store.fleet.publish_backend(BackendSample(name, "boot", 1, 0, probe))


async def _read(store: Store) -> History:
    return await store.fleet.history(gpus=[GPU, "host/1"], models=[MODEL, "beta"])


async def _all(store: Store, gpu: str = GPU) -> MemoryBucket:
    """The buckets of a GPU taken together: a minute may end while a test runs."""
    buckets = list((await _read(store)).memory(gpu).values())
    samples = sum(one.samples for one in buckets)
    used, foreign, managed = (
        sum(value * one.samples for value, one in zip(values, buckets, strict=True)) / samples
        for values in (
            [one.used_mean_mb for one in buckets],
            [one.foreign_mean_mb for one in buckets],
            [one.managed_mean_mb for one in buckets],
        )
    )
    return MemoryBucket(
        samples,
        used, max(one.used_max_mb for one in buckets),
        foreign, max(one.foreign_max_mb for one in buckets),
        managed, max(one.managed_max_mb for one in buckets),
    )  # fmt: skip


async def _requests(store: Store, model: str = MODEL) -> int:
    return sum((await _read(store)).requests(model).values())


async def test_a_minute_keeps_mean_and_peak_of_its_samples(store: Store) -> None:
    for seq, used in enumerate(("1000", "3000", "2000"), 1):
        await _sample(store, seq, used)

    bucket = await _all(store)

    assert (bucket.samples, bucket.used_max_mb, bucket.foreign_max_mb) == (3, 3000, 3000)
    assert bucket.used_mean_mb == pytest.approx(2000, abs=0.1)


async def test_before_every_model_was_probed_nothing_is_written(store: Store) -> None:
    """A cold start: the first readings come before the first probes, and before an api registers anything."""
    await store.redis.delete(store.keys.models)
    await _sample(store, 1, "9000")
    await store.fleet.register([Registration(name=name, port=8080, vram_gb=2) for name in ("one", "two")])
    await _sample(store, 2, "9000")
    await _place(store, "one", GPU)
    await _sample(store, 3, "9000")
    assert (await _read(store)).memory(GPU) == {}

    await _place(store, "two", GPU, "failed")  # nobody answers there: it was looked at
    await _sample(store, 4, "9000")

    bucket = await _all(store)
    assert (bucket.samples, bucket.managed_mean_mb, bucket.foreign_max_mb) == (1, 2048, 9000 - 2048)


async def test_a_probe_of_long_ago_does_not_tell_what_is_ours_now(store: Store) -> None:
    """The monitor was away for a minute: whatever happened meanwhile, its models are looked at first."""
    await _place(store, "here", GPU)
    past = await store.now_ms() - 60_000
    await store.redis.hset(store.keys.model("here"), "probe_ms", str(past))

    await _sample(store, 1, "9000")
    assert (await _read(store)).memory(GPU) == {}
    # Of a slow monitor it is recent.
    await _sample(store, 2, "9000", interval_ms="30000")
    assert (await _all(store)).samples == 1


@pytest.mark.parametrize("state", ["loading", "unloading"])
async def test_a_model_that_comes_or_goes_is_ours_as_far_as_it_is_measured(store: Store, state: str) -> None:
    await _place(store, "elsewhere", "host/1", state)
    await _place(store, "here", GPU, state)
    await _sample(store, 1, "1500")
    assert (await _read(store)).memory(GPU) == {}

    await store.redis.hset(store.keys.model("here"), "memory_mb", "1200")
    await _sample(store, 2, "1500")

    bucket = await _all(store)
    assert (bucket.samples, bucket.managed_mean_mb, bucket.foreign_mean_mb) == (1, 1200, 300)


async def test_models_of_other_hosts_keep_no_history_waiting(store: Store) -> None:
    await store.fleet.register([Registration(name="far", port=8080, vram_gb=2, host="elsewhere")])

    await _sample(store, 1, "1000")

    assert (await _all(store)).foreign_mean_mb == 1000


async def test_what_is_resident_is_managed_and_the_rest_foreign(store: Store) -> None:
    await _place(store, "here", GPU)
    await _place(store, "measured", GPU, memory_mb="1000")
    await _place(store, "spread", f"{GPU},host/1", memory_mb="600")
    await _place(store, "elsewhere", "host/1")
    await _place(store, "nowhere", None)
    await _place(store, "asleep", GPU, "sleeping")
    await store.redis.hset(store.keys.models, "broken", "not JSON")

    await _sample(store, 1, "5000")
    bucket = await _all(store)

    assert (bucket.managed_mean_mb, bucket.foreign_mean_mb) == (2048 + 1000 + 300, 5000 - 3348)


async def test_foreign_memory_is_never_below_zero(store: Store) -> None:
    await _place(store, "here", GPU)

    await _sample(store, 1, "500")
    bucket = await _all(store)

    assert (bucket.managed_mean_mb, bucket.foreign_mean_mb) == (2048, 0)


async def test_two_gpus_have_buckets_of_their_own(store: Store) -> None:
    await _sample(store, 1, "1000")
    await _sample(store, 1, "7000", gpu="host/1")

    assert ((await _all(store)).used_max_mb, (await _all(store, "host/1")).used_max_mb) == (1000, 7000)


async def test_a_sample_sent_again_or_late_counts_once(store: Store) -> None:
    await _sample(store, 1, "1000")
    before = (await store.dump()).hashes

    assert await _sample(store, 1, "1000") == "REPLAY"
    assert await _sample(store, 2, "9000", age_ms=5000) == "LATE"

    assert (await store.dump()).hashes == before


@pytest.mark.parametrize("used", [None, "nan", "inf", "-1", "much"])
async def test_a_reading_that_is_none_makes_no_bucket(store: Store, used: str | None) -> None:
    assert await _sample(store, 1, used) == "STORED"

    assert (await _read(store)).memory(GPU) == {}


async def test_a_request_counts_where_it_starts_and_its_retry_does_not(store: Store) -> None:
    await store.submit()
    assert await _requests(store) == 0
    await store.claim(nonce="n1")
    await store.claim(nonce="n1")
    await store.fail(kind=FailKind.RETRY)
    await store.claim(nonce="n2")

    assert (await _requests(store), await _requests(store, "beta")) == (1, 0)


async def test_buckets_go_eight_days_after_their_day(store: Store) -> None:
    await store.start()
    await _sample(store, 1, "1000")

    names = [name for name in (await store.dump()).hashes if ":history:" in name]

    assert len(names) == 2
    for name in names:
        left = await store.redis.pttl(name)
        assert 8 * _DAY_MS < left <= 9 * _DAY_MS, name


async def test_what_somebody_wrote_by_hand_is_left_out(store: Store) -> None:
    today = await store.now_ms() // _DAY_MS
    gpu = store.keys.of("gpu_history", f"{GPU}:{today}")
    rough = {
        "1440": "1 1 1 1 1 1 1",
        "x": "1 1 1 1 1 1 1",
        "1": "nonsense",
        "2": "1 nan 1 1 1 1 1",
        "3": "1 2",
    }
    good = {"4": "1 2 3 4 5 6 7"}
    for field, raw in (rough | good).items():
        await store.redis.hset(gpu, field, raw)
    requests = store.keys.of("request_history", f"{MODEL}:{today}")
    for field, raw in {"5": "3", "6": "-1", "7": "x", "8": "9" * 30}.items():
        await store.redis.hset(requests, field, raw)
    for name in (gpu, requests):
        await store.redis.expire(name, 60)

    history = await _read(store)

    assert history.memory(GPU) == {today * 1440 + 4: MemoryBucket(1, 2, 3, 4, 5, 6, 7)}
    assert history.requests(MODEL) == {today * 1440 + 5: 3}


async def test_a_bucket_that_cannot_be_read_is_begun_anew(store: Store) -> None:
    await _sample(store, 1, "1000")
    (name,) = [name for name in (await store.dump()).hashes if ":history:" in name]
    for field in await store.redis.hkeys(name):
        await store.redis.hset(name, field, "nonsense")

    await _sample(store, 2, "3000")

    bucket = await _all(store)
    assert (bucket.samples, bucket.used_mean_mb) == (1, 3000)
