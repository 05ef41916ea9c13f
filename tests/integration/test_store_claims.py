"""Several jobs claimed in one step, and several intake entries acked in one."""

from __future__ import annotations

from dataclasses import replace

from shared.store.records import ClaimOutcome
from tests.kit.store_fixture import Store, order

CLAIMED, BUSY, SKIPPED = ClaimOutcome.CLAIMED, ClaimOutcome.BUSY, ClaimOutcome.SKIPPED


async def _outcomes(store: Store, *ids: str, limit: int = 100) -> list[ClaimOutcome]:
    orders = [order(job_id, f"nonce of {job_id}", limit=limit) for job_id in ids]
    return [claimed.outcome for claimed in await store.jobs.claim_all(orders)]


async def test_jobs_claimed_together_start_in_their_order_and_a_replay_starts_none_again(
    store: Store,
) -> None:
    for job_id in ("a", "b", "c"):
        await store.submit(job_id, body=b'{"prompt":"%s"}' % job_id.encode())
    orders = [order(job_id, f"nonce of {job_id}") for job_id in ("a", "b", "c")]
    first = await store.jobs.claim_all(orders)
    assert [(one.outcome, one.attempt, one.body) for one in first] == [
        (CLAIMED, 1, f'{{"prompt":"{job_id}"}}') for job_id in ("a", "b", "c")
    ]
    assert await store.jobs.claim_all(orders) == first
    started = [entry for entry in await store.events() if entry.fields["type"] == "job.started"]
    assert [entry.fields["job_id"] for entry in started] == ["a", "b", "c"]


async def test_what_stands_behind_a_refused_job_in_its_queue_is_not_taken_before_it(store: Store) -> None:
    for job_id in ("a", "b", "c"):
        await store.submit(job_id)
    await store.submit("elsewhere", target="other")
    orders = [
        order("a", "na", limit=1),
        order("b", "nb", limit=1),
        order("c", "nc"),
        order("elsewhere", "ne"),
    ]
    outcomes = [claimed.outcome for claimed in await store.jobs.claim_all(orders)]
    assert outcomes == [CLAIMED, BUSY, SKIPPED, CLAIMED]
    assert [await store.state(job_id) for job_id in ("a", "b", "c")] == ["running", "queued", "queued"]


async def test_jobs_that_are_gone_or_end_at_their_claim_hold_nobody_up(store: Store) -> None:
    await store.submit("late")
    await store.pass_deadline("late")
    await store.attach("orphan")
    await store.submit("next")
    await store.set_holder(alive=False)
    assert await _outcomes(store, "never was", "late", "orphan", "next") == [
        ClaimOutcome.GONE,
        ClaimOutcome.EXPIRED,
        ClaimOutcome.ABANDONED,
        CLAIMED,
    ]


async def test_slots_taken_by_one_claim_count_for_the_next_of_the_same_step(store: Store) -> None:
    for number in range(4):
        await store.submit(f"j{number}", caller=f"caller {number}")
    assert await _outcomes(store, "j0", "j1", "j2", "j3", limit=2) == [CLAIMED, CLAIMED, BUSY, SKIPPED]
    assert (await store.model())["in_flight"] == "2"


async def _alone(store: Store, job_id: str, nonce: str = "", **changes: str) -> ClaimOutcome:
    written = (await store.job(job_id)).fields["queued_event"]
    asked = replace(order(job_id, nonce or f"nonce of {job_id}"), alone=changes.get("alone", written))
    return (await store.jobs.claim(asked)).outcome


async def test_a_claim_that_must_pass_nobody_is_refused_where_one_waits(store: Store) -> None:
    await store.submit("a")
    await store.submit("waits", target="elsewhere")

    assert await _alone(store, "a") is SKIPPED
    await store.jobs.cancel("waits", "enough")
    for _ in range(2):  # the second time it runs already
        assert await _alone(store, "a") is CLAIMED


async def test_a_claim_by_a_request_entry_is_refused_unless_it_is_that_very_job_as_new_as_it_was(
    store: Store,
) -> None:
    await store.submit("a")

    assert await _alone(store, "a", alone="1-1") is SKIPPED
    assert await _alone(store, "a") is CLAIMED
    await store.fail("a", 1)
    assert await _alone(store, "a", "again") is SKIPPED


async def test_an_attached_job_is_not_claimed_without_words_for_its_api(store: Store) -> None:
    await store.attach("a")

    assert (await store.jobs.claim(replace(order("a", "n1"), grant=()))).outcome is SKIPPED
    assert (await store.jobs.claim(order("a", "n1"))).outcome is CLAIMED


async def test_entries_of_accepted_jobs_are_acked_together_and_unknown_ones_told(store: Store) -> None:
    await store.submit("j1")
    entries = [
        (await store.deliver({"job_id": "j1"}), "j1"),
        (await store.deliver({"job_id": "never was"}), "never was"),
        (await store.deliver({"job_id": "j1:request"}), "j1:request"),
    ]
    unknown = [entry for entry, job_id in entries if job_id != "j1"]
    for _ in range(2):
        assert await store.jobs.acknowledge(entries) == unknown
        pending = (await store.dump()).pending[store.keys.requests]
        ours = {f"router {entry}" for entry, _ in entries}
        assert ours & set(pending) == {f"router {entry}" for entry in unknown}
    assert await store.jobs.acknowledge([]) == []


async def test_bodies_that_would_not_fit_into_one_reply_wait_for_the_next_call(store: Store) -> None:
    body = b'{"prompt":"%s"}' % (b"x" * 700_000)
    for job_id in ("a", "b", "c", "d"):
        await store.submit(job_id, body=body)
    assert await _outcomes(store, "a", "b", "c", "d") == [CLAIMED, CLAIMED, SKIPPED, SKIPPED]
    assert await _outcomes(store, "c", "d") == [CLAIMED, CLAIMED]
