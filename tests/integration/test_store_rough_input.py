"""Input that a careless or hostile caller can bring in: the store answers it and stays whole."""

from __future__ import annotations

import math

import pytest

from shared.registry import Registration
from shared.store.fleet import BackendSample
from shared.store.records import (
    AdmitOutcome,
    CancelOutcome,
    ClaimOrder,
    ClaimOutcome,
    FailKind,
    Failure,
    SubmitOutcome,
)
from tests.kit.store_fixture import BOUND, DECISION, LEASE_MS, Store, new_job

HALF = "half a pair: \ud83d"
"""A lone surrogate: JSON can say it (``"\\ud83d"``), UTF-8 can't."""


async def test_text_that_utf8_cannot_say_does_not_keep_an_attempt_from_being_recorded(store: Store) -> None:
    """A backend may cut its answer in the middle of an emoji, and an error text may quote it."""
    await store.start()
    failure = Failure(FailKind.RETRY, "broken", HALF, fields={"note": HALF})
    assert await store.jobs.fail("j1", 1, failure) == "QUEUED"
    assert (await store.job()).fields["error_detail"].startswith("half a pair: ")
    await store.claim(nonce="n2")
    ended = await store.jobs.finish("j1", 2, result=HALF, fields={"note": HALF}, learned={})
    assert ended.outcome == "FINISHED"
    assert (await store.job()).result is not None


async def test_text_that_utf8_cannot_say_is_stored_wherever_it_comes_in(store: Store) -> None:
    entry = await store.deliver({"v": "1"})
    await store.jobs.admit_dead(entry, HALF, {HALF: HALF})
    await store.submit()
    await store.jobs.hold("j1", "busy", HALF, ("reason", HALF))
    assert await store.jobs.cancel("j1", HALF) == (CancelOutcome.CANCELLED, "cancelled")
    await store.submit("j2")
    assert await store.jobs.reject("j2", "no_model", HALF, ("reason", HALF)) == "REJECTED"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_measurement_that_is_no_number_teaches_a_model_nothing(store: Store, value: float) -> None:
    await store.start()
    assert await store.finish(avg_latency_ms=value, avg_output_tokens=5.0) == "FINISHED"
    model = await store.model()
    assert ("avg_latency_ms" in model, model["avg_output_tokens"]) == (False, "5")


@pytest.mark.parametrize("part", [":request", ":result", ":"])
async def test_a_part_of_a_job_is_not_a_job(store: Store, part: str) -> None:
    """Ids come from URLs: ``<id>:request`` names a key of another kind."""
    await store.start()
    await store.finish()
    assert await store.jobs.get(f"j1{part}") is None
    assert await store.jobs.cancel(f"j1{part}", "mine") == (CancelOutcome.UNKNOWN, "")


async def test_an_idempotency_key_without_a_digest_stands_for_the_job_alone(store: Store) -> None:
    first = await store.jobs.submit(new_job("j1"), bound=BOUND, idempotency="k")
    second = await store.jobs.submit(new_job("j2"), bound=BOUND, idempotency="k")
    assert (first.outcome, second.outcome) == (SubmitOutcome.ACCEPTED, SubmitOutcome.DUPLICATE)
    assert second.job_id == "j1"


async def test_the_slots_of_a_claim_are_given_back_whatever_its_fields_say(store: Store) -> None:
    """What a decision writes about itself must not decide which counters go down again."""
    await store.submit()
    order = ClaimOrder("j1", "n1", "r1", LEASE_MS, "alpha", 4, (), {"decision_model": "other"}, DECISION)
    assert (await store.jobs.claim(order)).outcome is ClaimOutcome.CLAIMED
    assert await store.finish() == "FINISHED"
    assert (await store.model("alpha"))["in_flight"] == "0"


async def test_a_claim_without_any_fields_leaves_no_half_of_a_claim_behind(store: Store) -> None:
    """A script that failed after its first write would leave a slot taken for ever."""
    await store.submit()
    order = ClaimOrder("j1", "n1", "r1", LEASE_MS, "alpha", 4, (), {}, DECISION)
    assert (await store.jobs.claim(order)).outcome is ClaimOutcome.CLAIMED
    await store.lapse_lease()
    assert await store.jobs.sweep(grace_ms=0) == ["j1"]


async def test_a_registration_that_somebody_spoiled_does_not_keep_others_out(store: Store) -> None:
    """``orch:models`` is public: people write into it with redis-cli."""
    await store.redis.hset(store.keys.models, mapping={"spoiled": "not JSON", "list": "[1]"})
    entry = Registration(name="alpha", port=8080, source="file")
    assert await store.fleet.register([entry], replace_file=True) == ["alpha"]
    assert await store.fleet.registrations() == (entry,)


async def test_a_request_refused_for_a_full_queue_is_not_accepted_when_it_is_settled_again(
    store: Store,
) -> None:
    """H10: the reply was lost, or two routers held the entry, and meanwhile there was room again."""
    entry = await store.deliver({"v": "1", "type": "job.request", "prompt": "hi"})
    await store.submit("waiting")
    job = new_job(f"x-{entry}")
    outcome, reason = await store.jobs.admit_new(entry, job, bound=1, raw="{}")
    assert (outcome, "the queue is full (1 jobs wait)" in reason) == (AdmitOutcome.DEAD, True)
    await store.jobs.cancel("waiting", "make room")

    outcome, _ = await store.jobs.admit_new(entry, job, bound=1, raw="{}")

    assert outcome is AdmitOutcome.DEAD
    assert await store.state(job.id) == "absent"
    assert await store.redis.xlen(store.keys.dead) == 1


async def test_a_late_second_settling_does_not_run_a_job_again_that_is_long_forgotten(store: Store) -> None:
    """H21: a router that was stopped for a day wakes up with an entry in its hands."""
    entry = await store.deliver({"v": "1", "type": "job.request", "prompt": "hi"})
    job = new_job(f"x-{entry}")
    await store.jobs.admit_new(entry, job, bound=BOUND, raw="{}")
    await store.jobs.cancel(job.id, "done with it")
    await store.forget(job.id)
    assert (await store.jobs.admit_new(entry, job, bound=BOUND, raw="{}"))[0] is AdmitOutcome.DEAD
    assert await store.state(job.id) == "absent"


async def test_settling_an_entry_of_a_stream_that_is_gone_is_no_error(store: Store) -> None:
    """H16: somebody ran FLUSHALL between the read and the admit."""
    entry = await store.deliver({"v": "1", "type": "job.request", "prompt": "hi"})
    await store.redis.flushall()
    assert (await store.jobs.admit_new(entry, new_job(), bound=BOUND, raw="{}"))[0] is AdmitOutcome.DEAD
    assert (await store.jobs.admit_known(entry, "j1"))[0] is AdmitOutcome.DEAD
    await store.jobs.admit_dead(entry, "unreadable", {})
    assert (await store.dump()).permanent == frozenset()


async def test_running_jobs_past_their_deadline_do_not_shield_waiting_ones(store: Store) -> None:
    for name in ("r1", "r2", "r3"):
        await store.start(name)
        await store.pass_deadline(name, ago_ms=5000)
    await store.submit("waiting")
    await store.pass_deadline("waiting")
    assert await store.jobs.expire(overstay_ms=60_000, limit=2) == ["waiting"]


async def test_expire_ends_no_more_at_once_than_it_was_told_and_goes_on_with_the_next_call(
    store: Store,
) -> None:
    for number in range(5):
        await store.submit(f"j{number}")
        await store.pass_deadline(f"j{number}", ago_ms=1000 - number)
    calls = [await store.jobs.expire(overstay_ms=60_000, limit=2) for _ in range(4)]
    assert calls == [["j0", "j1"], ["j2", "j3"], ["j4"], []]


async def test_a_probe_field_that_is_unknown_now_is_dropped(store: Store) -> None:
    await store.fleet.publish_backend(BackendSample("alpha", "b", 1, 0, {"slots": "4", "kv_use": "0.5"}))
    await store.fleet.publish_backend(BackendSample("alpha", "b", 2, 0, {"slots": "4", "kv_use": None}))
    model = await store.model()
    assert ("kv_use" in model, model["slots"], model["probe_seq"]) == (False, "4", "2")
