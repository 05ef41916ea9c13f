"""Jobs that take another way than straight to success: lost leases, retries, deadlines, cancels, zombies."""

from __future__ import annotations

import pytest

from shared.states import JobState
from shared.store.records import FailKind
from tests.kit.store_fixture import GPU, LEASE_MS, MODEL, Store, new_job

ONE_TRY = {"max_attempts": "1"}


async def _sweep(store: Store) -> list[str]:
    await store.lapse_lease()
    return await store.jobs.sweep(grace_ms=10_000)


async def test_a_job_remembers_what_it_was_submitted_with_and_how_it_ended(store: Store) -> None:
    await store.start(body=b'{"prompt":"\xc3\xa4"}', fields={"metadata": '{"a": 1}'})
    fields = {"first_token_ms": "12.5"}
    await store.jobs.finish("j1", 1, result='{"text": "\u00f6"}', fields=fields, learned={})
    job = await store.job()
    assert (job.state, job.result) == (JobState.SUCCEEDED, '{"text": "\u00f6"}')
    expected = {"metadata": '{"a": 1}', "first_token_ms": "12.5", "attempt": "1", "tries": "0"}
    assert expected.items() <= job.fields.items()
    submitted, started, finished = (
        int(job.fields[f"{at}_ms"]) for at in ("submitted", "started", "finished")
    )
    assert submitted <= started <= finished <= await store.now_ms()
    body = await store.redis.get(store.keys.request("j1"))
    assert body == '{"prompt":"\u00e4"}'
    (event,) = [one for one in await store.events("j1") if one.fields["type"] == "job.succeeded"]
    assert int(event.fields["running_ms"]) == finished - started


async def test_what_has_ended_is_kept_for_the_retention_and_no_longer(store: Store) -> None:
    await store.start()
    await store.finish()
    for part in ("job", "request", "result"):
        left = await store.redis.pttl(store.keys.of(part, "j1"))
        assert 86_390_000 < left <= 86_400_000


async def test_a_job_without_a_result_says_none(store: Store) -> None:
    await store.start()
    assert (await store.job()).result is None
    await store.finish()
    found = await store.jobs.get("j1", with_result=False)
    assert found is not None
    assert found.result is None


async def test_a_lease_within_its_grace_is_left_alone(store: Store) -> None:
    await store.start()
    await store.redis.zadd(store.keys.static("leases"), {"j1": await store.now_ms() - 5000})
    assert await store.jobs.sweep(grace_ms=10_000) == []
    assert await store.jobs.sweep(grace_ms=1000) == ["j1"]


async def test_a_lost_lease_costs_a_try_and_the_last_one_ends_the_job(store: Store) -> None:
    await store.submit(fields={"max_attempts": "2"})
    await store.claim(nonce="n1")
    assert await _sweep(store) == ["j1"]
    assert ((await store.job()).fields["tries"], await store.state()) == ("1", "queued")
    await store.claim(nonce="n2")
    assert await _sweep(store) == ["j1"]
    job = await store.job()
    assert (job.state, job.fields["error_type"]) == (JobState.DEAD, "lease_lost")
    assert "router-1 stopped renewing" in job.fields["error_detail"]
    assert await store.kinds() == ["queued", "started", "requeued", "started", "dead"]


async def test_a_lost_job_that_was_to_be_cancelled_is_not_run_again(store: Store) -> None:
    await store.start()
    await store.jobs.cancel("j1", "no longer needed")
    assert await _sweep(store) == ["j1"]
    assert await store.state() == "cancelled"


async def test_a_lost_job_past_its_deadline_is_not_run_again(store: Store) -> None:
    await store.start()
    await store.pass_deadline()
    assert await _sweep(store) == ["j1"]
    assert await store.state() == "expired"


async def test_sweep_takes_the_longest_lost_first_and_no_more_than_it_was_told(store: Store) -> None:
    for number in range(4):
        await store.start(f"j{number}", f"n{number}")
        past = await store.now_ms() - 60_000 - 1000 * number
        await store.redis.zadd(store.keys.static("leases"), {f"j{number}": past})
    assert [await store.jobs.sweep(grace_ms=0, limit=3) for _ in range(2)] == [["j3", "j2", "j1"], ["j0"]]


async def test_a_renewed_lease_is_not_swept(store: Store) -> None:
    await store.start()
    await store.lapse_lease()
    assert await store.jobs.renew("j1", 1, LEASE_MS) == "RENEWED"
    assert await store.jobs.sweep(grace_ms=0) == []


async def test_a_charged_failure_counts_and_an_uncharged_one_does_not(store: Store) -> None:
    await store.submit(fields={"max_attempts": "2"})
    outcomes = []
    for number, charge in enumerate((False, False, True, False, True), 1):
        await store.claim(nonce=f"n{number}")
        outcomes.append(await store.fail("j1", number, charge=charge))
    assert outcomes == ["QUEUED", "QUEUED", "QUEUED", "QUEUED", "DEAD"]
    assert (await store.job()).fields["attempt"] == "5"


async def test_a_job_that_kept_failing_leaves_a_dead_letter_with_its_reason(store: Store) -> None:
    await store.start(fields=ONE_TRY)
    await store.fail(charge=True)
    (letter,) = (await store.dump()).streams[store.keys.dead]
    expected = {"type": "job.dead", "job_id": "j1", "reason": "it broke", "error_type": "broken"}
    assert expected.items() <= letter.fields.items()


@pytest.mark.parametrize("kind", [FailKind.RETRY, FailKind.RELEASED])
async def test_a_cancelled_job_that_fails_is_cancelled_and_not_tried_again(
    store: Store, kind: FailKind
) -> None:
    await store.start(fields=ONE_TRY)
    await store.jobs.cancel("j1", "no longer needed")
    assert await store.fail(kind=kind, charge=True) == "CANCELLED"


async def test_a_cancel_tells_its_router_and_says_why(store: Store) -> None:
    """H27: the event is a hint; what counts rides on the renewal."""
    await store.start()
    await store.jobs.cancel("j1", "no longer needed")
    event = (await store.events("j1"))[-1].fields
    assert (event["router"], event["reason"], event["attempt"]) == ("router-1", "no longer needed", "1")
    assert await store.jobs.renew("j1", 1, LEASE_MS) == "CANCEL"


async def test_a_success_wins_over_a_cancel_that_came_while_it_was_being_recorded(store: Store) -> None:
    await store.start()
    await store.jobs.cancel("j1", "too late")
    assert await store.finish() == "FINISHED"
    assert await store.jobs.cancel("j1", "too late") == ("ENDED", "succeeded")


async def test_a_delayed_retry_waits_for_its_time_and_then_in_its_old_place(store: Store) -> None:
    await store.submit("first")
    await store.submit("second")
    await store.claim("first")
    assert await store.fail("first", delay_ms=60_000) == "QUEUED"
    moved, next_in_ms = await store.jobs.promote()
    assert (moved, 59_000 < (next_in_ms or 0) <= 60_000) == ([], True)
    assert (await store.claim("first", "early")).outcome == "GONE"
    assert int((await store.job("first")).fields["due_ms"]) > await store.now_ms()
    await store.make_due("first")
    assert await store.jobs.promote() == (["first"], None)
    assert "due_ms" not in (await store.job("first")).fields
    assert [(await store.job(name)).position for name in ("first", "second")] == [1, 2]


async def test_promote_moves_no_more_than_it_was_told_and_says_that_more_is_due(store: Store) -> None:
    for number in range(3):
        await store.start(f"j{number}", f"n{number}")
        await store.fail(f"j{number}", delay_ms=60_000)
        await store.redis.zadd(store.keys.static("delayed"), {f"j{number}": number})
    assert await store.jobs.promote(limit=2) == (["j0", "j1"], 0)
    assert await store.jobs.promote(limit=2) == (["j2"], None)


async def test_a_delayed_job_can_expire(store: Store) -> None:
    await store.start()
    await store.fail(delay_ms=60_000)
    await store.pass_deadline()
    assert await store.jobs.expire(overstay_ms=0) == ["j1"]
    assert await store.jobs.promote() == ([], None)


async def test_a_released_job_goes_back_uncharged_and_says_so(store: Store) -> None:
    await store.start()
    assert await store.fail(kind=FailKind.RELEASED) == "QUEUED"
    event = (await store.events("j1"))[-1].fields
    assert (event["type"], event["charged"], event["tries"]) == ("job.requeued", "0", "0")


async def test_a_router_that_was_stopped_for_too_long_can_change_nothing_any_more(store: Store) -> None:
    """H9: its job was swept, claimed by another and is under way there, as attempt 2."""
    await store.start()
    await _sweep(store)
    assert (await store.claim(nonce="n2", router="router-2")).attempt == 2
    before = await store.dump()

    assert await store.jobs.renew("j1", 1, LEASE_MS) == "STALE"
    assert await store.finish("j1", 1) == "STALE"
    assert await store.fail("j1", 1, charge=True) == "STALE"
    assert (await store.claim(nonce="n1")).outcome == "GONE"
    assert await store.dump() == before

    assert await store.finish("j1", 2) == "FINISHED"
    assert await store.kinds() == ["queued", "started", "requeued", "started", "succeeded"]


async def test_a_claim_that_arrives_after_its_attempt_has_ended_starts_no_attempt_that_nobody_runs(
    store: Store,
) -> None:
    """H2: held up on the way, while its repetition was answered and the attempt ran and failed."""
    await store.start()
    await store.fail()
    before = await store.dump()
    assert (await store.claim(nonce="n1")).outcome == "GONE"
    assert await store.dump() == before
    assert (await store.claim(nonce="n2")).attempt == 2


async def test_a_zombies_success_does_not_replace_the_recorded_one(store: Store) -> None:
    await store.start()
    await _sweep(store)
    await store.claim(nonce="n2")
    await store.jobs.finish("j1", 2, result="second", fields={}, learned={})
    late = await store.jobs.finish("j1", 1, result="first", fields={}, learned={})
    assert late.outcome == "STALE"
    assert (await store.job()).result == "second"
    assert (await store.model())["samples"] == "1"


async def test_a_finish_repeated_after_its_job_is_forgotten_brings_nothing_back(store: Store) -> None:
    """H21: a late write must not create a hash that no TTL ever removes."""
    await store.start()
    await store.finish()
    await store.forget()
    before = await store.dump()
    assert await store.finish() == "STALE"
    assert await store.jobs.renew("j1", 1, LEASE_MS) == "STALE"
    assert await store.dump() == before


async def test_an_outcome_recorded_once_is_answered_the_same_for_ever(store: Store) -> None:
    """H1: the router repeats until it hears something; meanwhile another router runs the next attempt."""
    await store.start()
    await store.fail(charge=True)
    await store.claim(nonce="n2", router="router-2")
    before = await store.dump()
    assert await store.fail(charge=True) == "QUEUED"
    assert await store.dump() == before


async def test_a_job_that_overstays_its_deadline_frees_its_slots(store: Store) -> None:
    await store.start()
    await store.pass_deadline(ago_ms=120_000)
    assert await store.jobs.expire(overstay_ms=60_000) == ["j1"]
    placement = await store.redis.hget(store.keys.of("placement", GPU), "in_flight")
    assert ((await store.model(MODEL))["in_flight"], placement) == ("0", "0")
    assert await store.finish() == "STALE"


async def test_a_rejected_job_fails_with_the_reason_as_its_decision(store: Store) -> None:
    await store.submit()
    await store.jobs.reject("j1", "context", "needs 99 tokens", ("action", "reject"))
    fields = (await store.job()).fields
    shown = tuple(fields[name] for name in ("error_type", "error_detail", "decision_action"))
    assert shown == ("context", "needs 99 tokens", "reject")


async def test_the_error_of_an_earlier_attempt_is_told_in_its_event(store: Store) -> None:
    await store.start()
    await store.fail(delay_ms=1000, charge=True)
    event = (await store.events("j1"))[-1].fields
    expected = {"type": "job.retried", "error_type": "broken", "reason": "it broke", "delay_ms": "1000"}
    assert expected.items() <= event.items()
    assert (event["model"], event["tries"], event["charged"]) == (MODEL, "1", "1")


async def test_the_body_of_a_job_is_handed_out_again_with_each_attempt(store: Store) -> None:
    await store.jobs.submit(new_job(body=b'{"prompt":"again"}'), bound=10)
    bodies = []
    for number in (1, 2):
        bodies.append((await store.claim(nonce=f"n{number}")).body)
        await store.fail("j1", number)
    assert bodies == ['{"prompt":"again"}'] * 2
