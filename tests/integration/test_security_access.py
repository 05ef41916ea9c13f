"""What an API key may ask for, how much of it, and whose the jobs are that come with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.api_keys import ask, bearer, client_with, made
from tests.kit.gateway import CHAT, Desk, desk
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until


@pytest.fixture
async def admin(store: Store) -> str:
    return await made(store, "root", role="admin")


@pytest.fixture
async def locked(admin: str, store: Store, tmp_path: Path) -> AsyncIterator[Desk]:
    """An api for which there is one key, an admin's."""
    assert admin
    async with desk(store, tmp_path) as api:
        yield api


async def test_a_key_may_ask_for_its_models_only_and_no_other_surface_says_otherwise(
    store: Store, tmp_path: Path
) -> None:
    key = await made(store, models=("alpha",))
    async with desk(store, tmp_path) as api, client_with(key, api.url) as client:
        assert (await client.post({"prompt": "hi", "model": "alpha"})).status == 202
        for body in ({"model": "beta"}, {}, {"model": "auto"}, {"model": "alpha", "fallback": True}):
            problem = (await client.post({"prompt": "hi", **body})).problem(403)
            assert (problem["field"], problem["known"]) == ("model", ["alpha"])

        for model in ("beta", "auto", "auto:Chat"):
            answer = await api.post({**CHAT, "model": model}, **bearer(key))
            assert (answer.status, answer.body["error"]["code"]) == (404, "model_not_found")
            anthropic = await api.post({**CHAT, "model": model}, "/v1/messages", **bearer(key))
            assert (anthropic.status, anthropic.body["error"]["type"]) == (404, "not_found_error")

        listed = (await client.get("/v1/models")).body["data"]
        assert [entry["id"] for entry in listed] == ["alpha"]
        statuses = [(await client.get(f"/v1/models/{name}")).status for name in ("alpha", "beta")]
        assert statuses == [200, 404]


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"in_flight": 1}, "in_flight"), ({"queued": 1}, "queued"), ({"per_minute": 1}, "per_minute")],
    ids=str,
)
async def test_over_each_limit_both_surfaces_answer_429_name_it_and_say_when_to_come_again(
    store: Store, tmp_path: Path, limits: dict[str, Any], said: str
) -> None:
    key = await made(store, **limits)
    async with desk(store, tmp_path) as api, client_with(key, api.url) as client:
        await client.submit()

        native = await client.post({"prompt": "hi"})
        openai = await api.post(CHAT, **bearer(key))
        anthropic = await api.post(CHAT, "/v1/messages", **bearer(key))

        assert native.problem(429)["detail"].startswith(f"{said}: ")
        assert openai.body["error"]["code"] == "rate_limit_exceeded"
        assert anthropic.body["error"]["type"] == "rate_limit_error"
        for answer in (native, openai, anthropic):
            assert answer.status == 429
            assert said in answer.text
            assert 1 <= int(answer.headers["Retry-After"]) <= 60


async def test_a_request_of_the_openai_surface_counts_until_its_client_leaves(
    store: Store, tmp_path: Path
) -> None:
    key = await made(store, in_flight=1)
    async with desk(store, tmp_path) as api:
        asked = api.asks(CHAT, **bearer(key))
        await api.waiting()
        assert (await api.post(CHAT, **bearer(key))).status == 429
        asked.cancel()

        async def free() -> bool:
            return (
                await ask(api, "POST", "/v1/jobs", json={"prompt": "hi"}, headers=bearer(key))
            ).status == 202

        await wait_until(free, "there is room again")


async def test_the_caller_of_a_job_is_the_name_of_its_key_unless_an_admin_says_another(
    locked: Desk, admin: str, store: Store
) -> None:
    user = await made(store)
    await wait_until(lambda: locked.state.keyring.access(user) is not None, "the key is known")
    callers = {}
    for key in (user, admin):
        async with client_with(key, locked.url) as client:
            for asked in (None, "bob"):
                job_id = await client.submit(**({"caller": asked} if asked else {}))
                callers[key, asked] = (await store.job(job_id)).fields["caller"]
    assert callers == {
        (user, None): "alice",
        (user, "bob"): "alice",
        (admin, None): "root",
        (admin, "bob"): "bob",
    }


async def test_the_user_of_an_openai_request_does_not_pass_for_the_key(store: Store, tmp_path: Path) -> None:
    key = await made(store)
    async with desk(store, tmp_path) as api:
        asked = api.asks({**CHAT, "user": "bob"}, **bearer(key))
        assert (await store.job(await api.waiting())).fields["caller"] == "alice"
        asked.cancel()


async def test_a_user_sees_follows_and_cancels_its_own_jobs_only(
    locked: Desk, admin: str, store: Store
) -> None:
    user = await made(store)
    await wait_until(lambda: locked.state.keyring.access(user) is not None, "the key is known")
    async with client_with(user, locked.url) as client, client_with(admin, locked.url) as root:
        own, other = await client.submit(), await root.submit()

        assert [job["job_id"] for job in (await client.get("/v1/jobs")).body["jobs"]] == [own]
        assert {job["job_id"] for job in (await root.get("/v1/jobs")).body["jobs"]} == {own, other}
        for method, path in (("GET", other), ("DELETE", other), ("GET", f"{other}/events")):
            assert (await client.call(method, f"/v1/jobs/{path}")).status == 404
        assert await store.state(other) == "queued"
        assert (await client.call("DELETE", f"/v1/jobs/{own}")).status == 200
        assert (await root.call("DELETE", f"/v1/jobs/{other}")).status == 200


async def test_an_idempotency_key_of_one_key_is_not_that_of_another(
    locked: Desk, admin: str, store: Store
) -> None:
    user = await made(store)
    await wait_until(lambda: locked.state.keyring.access(user) is not None, "the key is known")
    async with client_with(user, locked.url) as client, client_with(admin, locked.url) as root:
        answers = [
            (await one.post({"prompt": "hi"}, Idempotency_Key="order-17")).body["job_id"]
            for one in (client, client, root)
        ]
    assert answers[0] == answers[1] != answers[2]
