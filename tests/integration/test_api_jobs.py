"""POST, GET, DELETE and the list of /v1/jobs on a real api, with the test in the router's place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from services.api.representations import Job
from shared.store.records import FailKind
from tests.kit.api_fixture import ApiClient
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until


async def test_an_accepted_job_is_safe_and_answered_as_get_answers_it(
    api: ApiClient, api_store: Store
) -> None:
    answer = await api.post({"prompt": "hi", "agent_type": "Chat", "metadata": {"ü": [1, None]}})
    job_id = answer.body["job_id"]

    assert answer.status == 202
    assert answer.headers["location"] == f"/v1/jobs/{job_id}"
    assert await api.job(job_id) == answer.body
    assert (await api_store.job(job_id)).fields["target"] == "auto:Chat"
    assert [entry.fields["job_id"] for entry in await api_store.events()] == [job_id]


async def test_a_waiting_job_has_the_fields_of_the_contract(api: ApiClient, api_store: Store) -> None:
    await api.submit(model="alpha")
    answer = await api.post(
        {"prompt": "hi", "model": "alpha", "priority": 5, "deadline_s": 90, "metadata": {"a": {"b": "c"}}}
    )
    body = answer.body
    stored = (await api_store.job(body["job_id"])).fields

    assert body == {
        "job_id": body["job_id"],
        "state": "queued",
        "agent_type": None,
        "model": "alpha",
        "priority": 5,
        "submitted_ms": int(stored["submitted_ms"]),
        "deadline_ms": int(stored["submitted_ms"]) + 90_000,
        "attempt": 0,
        "tries": 0,
        "decision": None,
        "position": 2,
        "timings": {"queued_ms": None, "first_token_ms": None, "running_ms": None, "total_ms": None},
        "result": None,
        "error": None,
        "metadata": {"a": {"b": "c"}},
        "request_id": answer.headers["x-request-id"],
    }


async def test_a_running_job_shows_its_decision_in_body_and_headers(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    await api_store.claim(job_id)

    answer = await api.get(f"/v1/jobs/{job_id}")
    body = answer.body

    assert (body["state"], body["attempt"], body["position"]) == ("running", 1, None)
    assert body["decision"] == {
        "action": "dispatch",
        "model": "alpha",
        "backend": "llama_cpp",
        "port": None,
        "url": None,
        "gpu": None,
        "reason": "it fits",
        "code": "best",
        "estimated_duration_ms": None,
    }
    named = {name.removeprefix("x-orchestrator-"): value for name, value in _ours(answer.headers).items()}
    assert float(named.pop("overhead-ms")) > 0
    assert named == {
        "job-id": job_id,
        "model": "alpha",
        "backend": "llama_cpp",
        "reason": "it fits",
        "queue-ms": str(body["timings"]["queued_ms"]),
    }


async def test_a_finished_job_has_result_and_timings_that_add_up(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    attempt = (await api_store.claim(job_id)).attempt
    result = {
        "text": "hello",
        "finish_reason": "stop",
        "usage": {"completion_tokens": 2},
        "response": {"id": "x"},
    }
    await api_store.jobs.finish(
        job_id, attempt, result=json.dumps(result), fields={"first_token_ms": "12.5"}, learned={}
    )

    body = await api.job(job_id)

    timings = body["timings"]
    assert (body["state"], body["error"]) == ("succeeded", None)
    assert body["result"] == {**result, "truncated": False}
    assert timings["first_token_ms"] == 12.5
    assert timings["total_ms"] == timings["queued_ms"] + timings["running_ms"]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ('{"text": "half \\ud83d"}', "half ?"),
        ('{"text": "x", "usage": {"score": NaN}}', "x"),
        ('{"text": 5}', None),
    ],
)
async def test_a_result_that_no_strict_reader_takes_is_shown_as_far_as_it_goes(
    api: ApiClient, api_store: Store, stored: str, shown: str | None
) -> None:
    job_id = await api.submit()
    attempt = (await api_store.claim(job_id)).attempt
    await api_store.jobs.finish(job_id, attempt, result=stored, fields={}, learned={})

    assert (await api.job(job_id))["result"]["text"] == shown


async def test_a_result_that_is_no_json_is_null_and_no_error(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    attempt = (await api_store.claim(job_id)).attempt
    await api_store.jobs.finish(job_id, attempt, result="{", fields={}, learned={})

    assert (await api.job(job_id))["result"] is None


async def test_a_failed_job_says_why(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    attempt = (await api_store.claim(job_id)).attempt
    await api_store.fail(job_id, attempt, FailKind.FAILED)

    body = await api.job(job_id)

    assert (body["state"], body["error"]) == ("failed", {"type": "broken", "detail": "it broke"})


async def test_a_retried_job_has_no_error_and_no_times_of_its_first_attempt(
    api: ApiClient, api_store: Store
) -> None:
    job_id = await api.submit()
    attempt = (await api_store.claim(job_id)).attempt
    await api_store.fail(job_id, attempt, charge=True, delay_ms=60_000)
    await api_store.jobs.hold(await api.submit(), "model_busy", "not of a job that is delayed", ())

    waiting = await api.job(job_id)
    await api.call("DELETE", f"/v1/jobs/{job_id}")
    ended = await api.job(job_id)

    assert (waiting["state"], waiting["attempt"], waiting["tries"]) == ("queued", 1, 1)
    assert waiting["decision"]["action"] == "dispatch"
    assert (waiting["error"], waiting["position"], waiting["timings"]["queued_ms"]) == (None, None, None)
    assert ended["timings"]["running_ms"] is None
    assert ended["timings"]["queued_ms"] == ended["timings"]["total_ms"]


async def test_a_second_attempt_has_its_own_times_again(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    first = (await api_store.claim(job_id)).attempt
    await api_store.fail(job_id, first, charge=True)
    second = (await api_store.claim(job_id, nonce="n2")).attempt
    await api_store.finish(job_id, second)

    timings = (await api.job(job_id))["timings"]

    assert timings["total_ms"] == timings["queued_ms"] + timings["running_ms"]


async def test_all_of_a_held_queue_show_why_it_is_held(api: ApiClient, api_store: Store) -> None:
    head, next_one = await api.submit(model="alpha"), await api.submit(model="alpha")
    other = await api.submit(model="beta")
    await api_store.jobs.hold(head, "model_busy", "alpha is full — 4 of 4", ("action", "hold"))

    answer = await api.get(f"/v1/jobs/{next_one}")

    held = {"action": "hold", "reason": "alpha is full — 4 of 4", "code": "model_busy"}
    assert {name: answer.body["decision"][name] for name in held} == held
    assert (await api.job(head))["decision"] == answer.body["decision"]
    assert (await api.job(other))["decision"] is None
    assert answer.headers["x-orchestrator-reason"] == "alpha is full ? 4 of 4"
    assert "x-orchestrator-model" not in answer.headers


async def test_a_job_keeps_its_own_hold_where_its_queue_has_none(api: ApiClient, api_store: Store) -> None:
    """The list does not read what queues wait for."""
    job_id = await api.submit(model="alpha")
    await api_store.jobs.hold(job_id, "model_busy", "alpha is full", ())

    listed = (await api.get("/v1/jobs")).body["jobs"]

    assert listed[0]["decision"]["reason"] == "alpha is full"


async def test_a_job_that_expired_under_a_hold_says_what_it_had_waited_for(
    api: ApiClient, api_store: Store
) -> None:
    job_id = await api.submit(model="alpha", deadline_s=0.001)
    await api_store.jobs.hold(job_id, "not_resident", "alpha is unloaded", ())
    await wait_until(lambda: api_store.jobs.expire(overstay_ms=0), "the deadline passes")

    job = await api.job(job_id)

    assert (job["state"], job["decision"]["code"]) == ("expired", "not_resident")


@pytest.mark.parametrize(
    "job_id", ["0" * 32, "nope", "a:request", "x" * 65, "%20", "a%0Ab", "ü", "x-1-0", "*"]
)
@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("GET", "?wait=5"), ("DELETE", ""), ("GET", "/events")]
)
async def test_an_unknown_job_is_a_404_problem(api: ApiClient, method: str, suffix: str, job_id: str) -> None:
    answer = await api.call(method, f"/v1/jobs/{job_id}{suffix}")

    assert "no job" in answer.problem(404)["detail"]


async def test_the_id_of_a_key_beside_the_job_is_no_job(api: ApiClient) -> None:
    job_id = await api.submit()

    (await api.get(f"/v1/jobs/{job_id}:request")).problem(404)


async def test_the_list_is_newest_first_without_results(api: ApiClient, api_store: Store) -> None:
    ids = [await api.submit() for _ in range(3)]
    attempt = (await api_store.claim(ids[0])).attempt
    await api_store.finish(ids[0], attempt)

    listed = (await api.get("/v1/jobs")).body["jobs"]

    assert [job["job_id"] for job in listed] == ids[::-1]
    assert listed[2]["state"] == "succeeded"
    assert listed[2]["result"] is None
    for job in listed:
        Job.model_validate(job)


async def test_the_list_can_be_of_one_state_and_short(api: ApiClient, api_store: Store) -> None:
    ids = [await api.submit() for _ in range(4)]
    await api_store.claim(ids[1])

    async def listed(query: str) -> list[str]:
        return [job["job_id"] for job in (await api.get(f"/v1/jobs?{query}")).body["jobs"]]

    assert await listed("state=running") == [ids[1]]
    assert await listed("state=queued&limit=2") == [ids[3], ids[2]]
    assert await listed("state=dead") == []


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ("state=done", "state", "'succeeded'"),
        ("limit=0", "limit", "1"),
        ("limit=1001", "limit", "1000"),
        ("limit=many", "limit", "integer"),
    ],
)
async def test_a_wrong_filter_is_named_with_what_is_allowed(
    api: ApiClient, query: str, field: str, said: str
) -> None:
    problem = (await api.get(f"/v1/jobs?{query}")).problem(422)

    assert problem["field"] == field
    assert said in problem["detail"]


async def test_a_waiting_job_is_cancelled_at_once_and_again_without_harm(
    api: ApiClient, api_store: Store
) -> None:
    job_id = await api.submit()

    answers = [await api.call("DELETE", f"/v1/jobs/{job_id}") for _ in range(2)]

    assert [(answer.status, answer.body["state"]) for answer in answers] == [(200, "cancelled")] * 2
    assert answers[0].body["error"]["type"] == "cancelled"
    assert await api_store.kinds(job_id) == ["queued", "cancelled"]


async def test_cancelling_a_running_job_asks_its_router(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    attempt = (await api_store.claim(job_id)).attempt

    answer = await api.call("DELETE", f"/v1/jobs/{job_id}")

    assert (answer.status, answer.body["state"]) == (202, "running")
    assert str(await api_store.jobs.renew(job_id, attempt, 1000)) == "CANCEL"
    assert await api_store.kinds(job_id) == ["queued", "started", "cancel_requested"]


async def test_a_job_that_has_ended_cannot_be_cancelled(api: ApiClient, api_store: Store) -> None:
    job_id = await api.submit()
    attempt = (await api_store.claim(job_id)).attempt
    await api_store.finish(job_id, attempt)

    problem = (await api.call("DELETE", f"/v1/jobs/{job_id}")).problem(409)

    assert "succeeded" in problem["detail"]
    assert await api_store.state(job_id) == "succeeded"


def _ours(headers: Mapping[str, Any]) -> dict[str, str]:
    return {
        name.lower(): value for name, value in headers.items() if name.lower().startswith("x-orchestrator-")
    }
