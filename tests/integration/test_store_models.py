"""What finish and fail teach the store about a model (averages, breaker), and what a claim checks again."""

from __future__ import annotations

import pytest

from shared.store.fleet import GpuSample
from shared.store.records import ClaimOrder, FailKind, GpuClaim, ModelFailure
from tests.kit.store_fixture import GPU, MODEL, Store, order

FAILED, REFUSED, NONE = ModelFailure.FAILED, ModelFailure.REFUSED, ModelFailure.NONE


async def _run(store: Store, name: str, failure: ModelFailure | None = None, **learned: float) -> None:
    """One job on the model that succeeds, or fails in this way."""
    await store.start(name, name)
    if failure is None:
        assert await store.finish(name, 1, **learned) == "FINISHED"
    else:
        assert await store.fail(name, kind=FailKind.FAILED, model_failure=failure) == "FAILED"


async def _open_for_ms(store: Store) -> int | None:
    until = (await store.model()).get("breaker_open_until_ms")
    return None if until is None else int(until) - await store.now_ms()


async def _pass_breaker_time(store: Store) -> None:
    """Let the breaker's time be over: it is half open now."""
    await store.redis.hset(store.keys.model(MODEL), "breaker_open_until_ms", str(await store.now_ms() - 1))


async def _claimable(store: Store, name: str) -> bool:
    await store.submit(name)
    return (await store.claim(name, name)).outcome == "CLAIMED"


async def test_averages_follow_what_is_measured(store: Store) -> None:
    """The first few count evenly, from the fifth on each weighs a fifth."""
    for number, value in enumerate((10.0, 20.0, 30.0, 40.0, 50.0, 60.0)):
        await _run(store, f"j{number}", avg_latency_ms=value)
    model = await store.model()
    # 10, 15, 20, 25, 30, then 30 + (60 - 30) / 5
    assert float(model["avg_latency_ms"]) == pytest.approx(36.0)
    assert model["samples"] == "6"


async def test_an_average_that_is_first_measured_late_starts_with_what_it_sees(store: Store) -> None:
    for number in range(4):
        await _run(store, f"j{number}", avg_latency_ms=10.0)
    await _run(store, "late", avg_latency_ms=10.0, avg_output_tokens=77.0)
    assert (await store.model())["avg_output_tokens"] == "77"


async def test_two_failures_leave_the_breaker_closed_the_third_in_a_row_opens_it(store: Store) -> None:
    await _run(store, "j1", FAILED)
    await _run(store, "j2", FAILED)
    assert await _open_for_ms(store) is None
    await _run(store, "j3", FAILED)
    assert 4000 < (await _open_for_ms(store) or 0) <= 5000
    model = await store.model()
    assert (model["failures_in_row"], model["failure_count"]) == ("3", "3")
    assert model["last_error"] == "it broke"
    await store.submit("j4")
    assert (await store.claim("j4")).outcome == "BUSY"


async def test_a_success_between_them_starts_the_count_again(store: Store) -> None:
    for name, failure in (("a", FAILED), ("b", FAILED), ("c", None), ("d", FAILED), ("e", FAILED)):
        await _run(store, name, failure)
    assert await _open_for_ms(store) is None


@pytest.mark.parametrize(("failures", "opens"), [(10, False), (11, True)])
async def test_more_than_half_of_twenty_failures_open_the_breaker(
    store: Store, failures: int, opens: bool
) -> None:
    """Spread so that there are never three in a row; the last one is a failure."""
    outcomes = {10: "10" * 10, 11: "100" + "10" * 7 + "100"}[failures]
    assert (len(outcomes), outcomes.count("0")) == (20, failures)
    for number, outcome in enumerate(outcomes):
        assert await _open_for_ms(store) is None
        await _run(store, f"j{number}", None if outcome == "1" else FAILED)
    assert (await _open_for_ms(store) is not None) == opens


async def test_a_refused_connection_opens_the_breaker_at_once(store: Store) -> None:
    await _run(store, "j1", REFUSED)
    assert await _open_for_ms(store) is not None


@pytest.mark.parametrize("kind", list(FailKind))
async def test_a_failure_that_is_not_the_models_leaves_it_alone(store: Store, kind: FailKind) -> None:
    await store.start()
    await store.fail(kind=kind, model_failure=NONE)
    used = {"rate_10min", "rate_6h", "rate_ms", "last_used_ms"}
    assert {name: value for name, value in (await store.model()).items() if name not in used} == {
        "in_flight": "0"
    }


async def test_a_half_open_breaker_lets_one_attempt_through(store: Store) -> None:
    await _run(store, "j1", REFUSED)
    await _pass_breaker_time(store)
    assert await _claimable(store, "probe")
    assert not await _claimable(store, "second")
    assert await store.finish("probe") == "FINISHED"
    assert (await store.claim("second")).outcome == "CLAIMED"


async def test_a_success_closes_the_breaker_and_forgets_what_opened_it(store: Store) -> None:
    for number in range(3):
        await _run(store, f"j{number}", FAILED)
    await _pass_breaker_time(store)
    await _run(store, "probe")
    model = await store.model()
    assert {"breaker_open_until_ms", "breaker_opens"}.isdisjoint(model)
    assert (model["failures_in_row"], model["outcomes"]) == ("0", "")
    await _run(store, "after", FAILED)
    assert await _open_for_ms(store) is None


async def test_each_failed_probe_doubles_the_time_up_to_five_minutes(store: Store) -> None:
    await _run(store, "j0", REFUSED)
    times = []
    for number in range(1, 9):
        await _pass_breaker_time(store)
        await _run(store, f"j{number}", FAILED)
        times.append(round((await _open_for_ms(store) or 0) / 1000))
    assert times == [10, 20, 40, 80, 160, 300, 300, 300]


async def test_failures_from_before_it_opened_do_not_prolong_it(store: Store) -> None:
    """Four ran when the model went away: one opens the breaker, three more are no news."""
    for number in range(4):
        await store.start(f"j{number}", f"n{number}")
    for number in range(4):
        await store.fail(f"j{number}", kind=FailKind.FAILED, model_failure=REFUSED)
    assert (await store.model())["breaker_opens"] == "1"
    assert (await _open_for_ms(store) or 0) <= 5000


async def test_the_failure_average_fades_by_half_a_minute_at_a_time(store: Store) -> None:
    await _run(store, "j1", FAILED)
    assert (await store.model())["failure_ema"] == "0.3"
    minute_ago = str(await store.now_ms() - 60_000)
    await store.redis.hset(store.keys.model(MODEL), "failure_ema_ms", minute_ago)
    await _run(store, "j2", FAILED)
    assert float((await store.model())["failure_ema"]) == pytest.approx(0.15 + 0.85 * 0.3, abs=0.001)
    await _run(store, "j3")
    assert float((await store.model())["failure_ema"]) == pytest.approx(0.405 * 0.7, abs=0.001)


async def test_a_saturated_model_is_marked_until_it_asked_to_be_tried_again(store: Store) -> None:
    await store.start()
    await store.fail(saturated_ms=7000)
    model = await store.model()
    assert 6000 < int(model["saturated_until_ms"]) - await store.now_ms() <= 7000
    assert {"failure_count", "failures_in_row", "breaker_open_until_ms"}.isdisjoint(model)


async def test_a_model_takes_as_many_as_the_decision_allows(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.submit(name)
    outcomes = [(await store.claim(name, name, limit=2)).outcome.value for name in ("a", "b", "c")]
    assert outcomes == ["CLAIMED", "CLAIMED", "BUSY"]
    assert (await store.model())["in_flight"] == "2"


async def test_a_gpu_takes_as_many_as_the_decision_allows_over_all_its_models(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.submit(name)
    gpus = (GpuClaim(GPU, 2, 0), GpuClaim("host/1", 9, 0))
    claims = [("a", "alpha"), ("b", "beta"), ("c", "gamma")]
    outcomes = [(await store.claim(name, name, model=model, gpus=gpus)).outcome for name, model in claims]
    assert [outcome.value for outcome in outcomes] == ["CLAIMED", "CLAIMED", "BUSY"]
    assert await store.state("c") == "queued"
    await store.finish("a")
    assert (await store.claim("c", "c", model="gamma", gpus=gpus)).outcome == "CLAIMED"


async def test_a_claim_refused_by_one_gpu_takes_nothing_from_the_others(store: Store) -> None:
    await store.start("a", "a")
    await store.submit("b")
    before = await store.dump()
    gpus = (GpuClaim("host/1", 5, 0), GpuClaim(GPU, 1, 0))
    assert (await store.claim("b", gpus=gpus)).outcome == "BUSY"
    assert (await store.claim("b", gpus=(GpuClaim("host/1", 5, 0), GpuClaim(GPU, 9, 4)))).outcome == "MOVED"
    assert await store.dump() == before


async def test_a_decision_on_an_older_level_is_not_carried_out(store: Store) -> None:
    level = {"pressure": "low", "full": "0", "thermal": "normal"}
    await store.fleet.publish_gpu(GpuSample(GPU, "b", 1, 1000, {}, level), ttl_s=60)
    await store.submit()
    (gpu,) = (await store.fleet.view(heads=0)).gpus
    seen = (GpuClaim(GPU, 9, int(gpu.level["seq"])),)
    await store.fleet.publish_gpu(GpuSample(GPU, "b", 2, 0, {}, {**level, "pressure": "critical"}), ttl_s=60)
    assert (await store.claim(gpus=seen)).outcome == "MOVED"
    assert (await store.claim(gpus=(GpuClaim(GPU, 9, 2),))).outcome == "CLAIMED"


async def test_a_claim_writes_its_decision_to_job_event_and_log(store: Store) -> None:
    await store.submit()
    claimed = await store.claim()
    assert (claimed.attempt, claimed.body) == (1, '{"prompt":"hi"}')
    fields = (await store.job()).fields
    assert claimed.deadline_ms == int(fields["deadline_ms"])
    assert (fields["decision_model"], fields["decision_reason"]) == (MODEL, "it fits")
    started = (await store.events("j1"))[-1].fields
    expected = {"type": "job.started", "model": MODEL, "gpu": GPU, "router": "router-1", "reason": "it fits"}
    assert expected.items() <= started.items()
    (line,) = (await store.dump()).streams[store.keys.decisions]
    assert {"job_id": "j1", "action": "dispatch", "reason": "it fits"}.items() <= line.fields.items()
    assert list(line.fields)[:2] == ["v", "type"]


async def test_a_claim_without_gpus_counts_on_its_model_alone(store: Store) -> None:
    await store.submit()
    claim: ClaimOrder = order(gpus=())
    assert (await store.jobs.claim(claim)).outcome == "CLAIMED"
    assert await store.finish() == "FINISHED"
    assert not [name for name in (await store.dump()).hashes if "placement" in name]
