"""Samples, levels, registrations, heartbeats: the late, the repeated and the foreign replace nothing."""

from __future__ import annotations

import json

import pytest

from shared.errors import InstanceTaken
from shared.registry import Registration
from shared.store.fleet import HEARTBEAT_TTL_S, BackendSample, GpuSample
from shared.store.records import GpuClaim
from tests.kit.store_fixture import GPU, MODEL, Store

LOW = {"pressure": "low", "full": "0", "thermal": "normal"}
CRITICAL = {**LOW, "pressure": "critical"}
ENTRY = Registration(name=MODEL, port=8080, source="file")


def _sample(
    seq: int,
    *,
    used: int = 10,
    age_ms: int | None = None,
    boot: str = "boot",
    level: dict[str, str] | None = None,
) -> GpuSample:
    """Number ``seq`` of samples that were taken a second apart, of which the fifth is new."""
    age_ms = max(0, 5000 - 1000 * seq) if age_ms is None else age_ms
    return GpuSample(GPU, boot, seq, age_ms, {"memory_used_mb": str(used)}, level or LOW)


async def _publish(store: Store, sample: GpuSample) -> tuple[str, int]:
    return await store.fleet.publish_gpu(sample, ttl_s=60)


async def _used(store: Store) -> str:
    (gpu,) = (await store.fleet.view(heads=0)).gpus
    return gpu.sample["memory_used_mb"]


async def _history(store: Store) -> list[str]:
    entries = (await store.dump()).streams[store.keys.gpu_samples]
    return [entry.fields["memory_used_mb"] for entry in entries]


async def test_a_sample_is_the_latest_value_and_joins_the_history(store: Store) -> None:
    assert await _publish(store, _sample(1)) == ("STORED", 1)
    assert await _publish(store, _sample(2, used=20)) == ("STORED", 1)
    assert (await _used(store), await _history(store)) == ("20", ["10", "20"])
    (entry, _) = (await store.dump()).streams[store.keys.gpu_samples]
    assert list(entry.fields)[:4] == ["v", "type", "gpu", "ts_ms"]
    assert entry.fields["type"] == "gpu.sample"


async def test_a_sample_says_when_it_was_taken_not_when_it_arrived(store: Store) -> None:
    """H28: age by the monitor's monotonic clock, time by Redis."""
    await _publish(store, _sample(1, age_ms=4000))
    (gpu,) = (await store.fleet.view(heads=0)).gpus
    assert 4000 <= await store.now_ms() - int(gpu.sample["ts_ms"]) < 6000


async def test_a_backlog_delivered_late_neither_replaces_the_latest_nor_moves_a_level(store: Store) -> None:
    """H28: a stalled monitor sends what it read long ago."""
    await _publish(store, _sample(5, used=50))
    before = await store.fleet.level(GPU)
    late = [_sample(seq, used=seq, age_ms=10_000 - seq, boot="older", level=CRITICAL) for seq in (1, 2)]
    assert [await _publish(store, sample) for sample in late] == [("LATE", 1), ("LATE", 1)]
    assert (await _used(store), await store.fleet.level(GPU)) == ("50", before)
    assert await _history(store) == ["50", "1", "2"]
    assert (await store.dump()).streams[store.keys.gpu_samples][-1].fields["late"] == "1"


async def test_a_repeated_or_overtaken_sample_counts_once(store: Store) -> None:
    """H1: redis-py resends when a reply is lost."""
    await _publish(store, _sample(2, used=20))
    before = await store.dump()
    assert await _publish(store, _sample(2, used=20)) == ("REPLAY", 1)
    assert await _publish(store, _sample(1, used=10)) == ("REPLAY", 1)
    assert await store.dump() == before


async def test_a_restarted_monitor_counts_from_one_again(store: Store) -> None:
    await _publish(store, _sample(900, age_ms=100))
    assert await _publish(store, _sample(1, used=11, age_ms=0, boot="new")) == ("STORED", 1)
    assert await _used(store) == "11"


@pytest.mark.parametrize("changed", [{"pressure": "high"}, {"full": "1"}, {"thermal": "warning"}])
async def test_a_changed_level_gets_the_next_number_and_its_own_time(
    store: Store, changed: dict[str, str]
) -> None:
    await _publish(store, _sample(1))
    old = await store.fleet.level(GPU)
    assert await _publish(store, _sample(2, level={**LOW, **changed})) == ("STORED", 2)
    level = await store.fleet.level(GPU)
    since = {name: int(level[f"{name}_since_ms"]) - int(old[f"{name}_since_ms"]) for name in LOW}
    assert {name for name, moved in since.items() if moved >= 1000} == set(changed)
    assert {name for name, moved in since.items() if moved == 0} == set(LOW) - set(changed)
    assert await _publish(store, _sample(3, level={**LOW, **changed})) == ("STORED", 2)
    (_, second, third) = (await store.dump()).streams[store.keys.gpu_samples]
    assert (second.fields.get("level_changed"), third.fields.get("level_changed")) == ("1", None)


async def test_the_last_level_stands_after_its_readings_have_gone(store: Store) -> None:
    """H28: the sample expires with its monitor, the level doesn't; unknown is not zero."""
    await _publish(store, _sample(1, level=CRITICAL))
    assert 0 < await store.redis.pttl(store.keys.of("gpu", GPU)) <= 60_000
    await store.redis.delete(store.keys.of("gpu", GPU))
    (gpu,) = (await store.fleet.view(heads=0)).gpus
    assert (dict(gpu.sample), gpu.level["pressure"]) == ({}, "critical")


async def test_a_field_that_is_no_longer_read_is_gone_with_the_next_sample(store: Store) -> None:
    await store.fleet.publish_gpu(GpuSample(GPU, "b", 1, 1000, {"temperature_c": "50"}, LOW), ttl_s=60)
    await store.fleet.publish_gpu(GpuSample(GPU, "b", 2, 0, {}, LOW), ttl_s=60)
    (gpu,) = (await store.fleet.view(heads=0)).gpus
    assert "temperature_c" not in gpu.sample


async def test_a_probe_counts_once_and_drops_what_is_unknown_now(store: Store) -> None:
    assert await store.fleet.publish_backend(_probe(1, kv_use="0.5")) == "STORED"
    assert await store.fleet.publish_backend(_probe(2, kv_use=None)) == "STORED"
    before = await store.dump()
    assert await store.fleet.publish_backend(_probe(2, kv_use="0.9")) == "REPLAY"
    assert await store.fleet.publish_backend(_probe(1, kv_use="0.9")) == "REPLAY"
    assert await store.dump() == before
    model = await store.model()
    assert ("kv_use" in model, model["probe_seq"]) == (False, "2")
    assert len(before.streams[store.keys.backend_samples]) == 2


def _probe(seq: int, *, kv_use: str | None) -> BackendSample:
    return BackendSample(MODEL, "boot", seq, 0, {"slots": "4", "kv_use": kv_use})


async def test_a_probe_leaves_what_the_store_counts_itself(store: Store) -> None:
    await store.start()
    await store.fleet.publish_backend(_probe(1, kv_use="0.5"))
    assert (await store.model())["in_flight"] == "1"


async def test_registrations_of_a_file_replace_those_of_the_last_one_and_no_others(store: Store) -> None:
    by_http = Registration(name="by-http", port=1)
    await store.fleet.register([by_http])
    await store.fleet.register([ENTRY, Registration(name="old", port=2, source="file")], replace_file=True)
    changed = await store.fleet.register([ENTRY.model_copy(update={"port": 9})], replace_file=True)
    assert sorted(changed) == [MODEL, "old"]
    assert [entry.name for entry in await store.fleet.registrations()] == [MODEL, "by-http"]
    kinds = [entry.fields["type"] for entry in (await store.dump()).streams[store.keys.control]]
    assert sorted(kinds) == ["model.registered"] * 4 + ["model.removed"]


async def test_a_file_wins_over_what_was_registered_before(store: Store) -> None:
    await store.fleet.register([Registration(name=MODEL, port=1)])
    await store.fleet.register([ENTRY], replace_file=True)
    assert await store.fleet.registrations() == (ENTRY,)


async def test_registering_the_same_again_says_nothing(store: Store) -> None:
    await store.fleet.register([ENTRY], replace_file=True)
    before = await store.dump()
    assert await store.fleet.register([ENTRY], replace_file=True) == []
    assert await store.dump() == before


async def test_a_registration_survives_the_way_through_redis(store: Store) -> None:
    entry = Registration(
        name="a/b:c", url="http://10.0.0.1:1/x", backend="vllm", vram_gb=6.5, serves=("x", "y"),
        agent_types=("Chat",), gpu=1, pin=True, ttl_s=2.5, tokens_per_second=10, simulated=True,
    )  # fmt: skip
    await store.fleet.register([entry])
    assert await store.fleet.registrations() == (entry,)
    assert (await store.fleet.view(heads=0)).models[0].registration == entry


async def test_an_unreadable_registration_is_left_out(store: Store) -> None:
    await store.fleet.register([ENTRY])
    await store.redis.hset(store.keys.models, "broken", '{"name": "broken"}')
    view = await store.fleet.view(heads=0)
    assert [model.registration.name for model in view.models] == [MODEL]


async def test_fields_of_a_later_version_do_not_hide_a_model(store: Store) -> None:
    await store.redis.hset(store.keys.models, "new", '{"name": "new", "port": 8080, "of_tomorrow": [1]}')
    view = await store.fleet.view(heads=0)
    assert [model.registration.name for model in view.models] == ["new"]


@pytest.mark.parametrize("junk", ["x", "[]", "7", '{"heartbeat_ms": "soon"}', '{"heartbeat_ms": null}'])
async def test_an_unreadable_service_is_skipped_and_its_name_is_free(store: Store, junk: str) -> None:
    await store.redis.hset(store.keys.services, mapping={"junk": junk, "router-1": junk})
    await store.fleet.heartbeat("router-1", "boot", {"service": "router"})
    await store.fleet.forget_services(older_than_s=300)
    assert [record.instance for record in await store.fleet.services()] == ["router-1"]
    await store.fleet.retire("junk", "boot")


async def test_a_name_in_use_is_refused_to_another_process(store: Store) -> None:
    """H23: two readers of one consumer name would see one list of pending entries."""
    await store.fleet.heartbeat("router-1", "first", {"service": "router", "version": "1"})
    with pytest.raises(InstanceTaken, match=r"'router-1'.*ORCH_INSTANCE"):
        await store.fleet.heartbeat("router-1", "second", {"service": "router"})
    await store.fleet.heartbeat("router-1", "first", {"service": "router", "version": "2"})
    (record,) = await store.fleet.services()
    assert (record.boot, record.version, record.age_ms < 5000) == ("first", "2", True)


async def test_a_name_is_free_again_once_its_process_fell_silent(store: Store) -> None:
    await store.fleet.heartbeat("router-1", "first", {"service": "router"})
    last_ms = await store.now_ms() - HEARTBEAT_TTL_S * 1000 - 1
    silent = json.dumps({"boot": "first", "heartbeat_ms": last_ms})
    await store.redis.hset(store.keys.services, "router-1", silent)
    await store.fleet.heartbeat("router-1", "second", {"service": "router"})
    assert [record.boot for record in await store.fleet.services()] == ["second"]


async def test_a_process_takes_only_its_own_entry_off_the_list(store: Store) -> None:
    await store.fleet.heartbeat("router-1", "first", {})
    await store.fleet.retire("router-1", "second")
    assert len(await store.fleet.services()) == 1
    await store.fleet.retire("router-1", "first")
    assert await store.fleet.services() == ()


async def test_instances_silent_for_long_are_forgotten(store: Store) -> None:
    await store.fleet.heartbeat("alive", "b", {})
    await store.redis.hset(store.keys.services, "gone", '{"boot": "b", "heartbeat_ms": 1}')
    await store.fleet.forget_services(older_than_s=300)
    assert [record.instance for record in await store.fleet.services()] == ["alive"]


async def test_a_view_shows_queues_models_and_gpus_at_one_moment(store: Store) -> None:
    await store.fleet.register([ENTRY])
    await _publish(store, _sample(1))
    for number in range(5):
        await store.submit(f"a{number}")
    await store.submit("b0", target="beta")
    await store.jobs.hold("b0", "busy", "all are busy", ("action", "hold"))
    await store.claim("a0", gpus=(GpuClaim(GPU, 9, 1),))
    view = await store.fleet.view(heads=2)
    shown = {
        target.target: (target.waiting, [head.job_id for head in target.heads]) for target in view.targets
    }
    assert shown == {"auto:Chat": (4, ["a1", "a2"]), "beta": (1, ["b0"])}
    (held,) = [target.hold for target in view.targets if target.target == "beta"]
    assert '"code":"busy"' in held
    assert (view.models[0].fields["in_flight"], view.gpus[0].in_flight) == ("1", 1)
    assert {one.heads[0].fields["state"] for one in view.targets} == {"queued"}
    assert abs(view.now_ms - await store.now_ms()) < 5000
    assert (await store.fleet.view(heads=0)).targets == ()
