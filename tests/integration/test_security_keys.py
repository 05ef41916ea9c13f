"""API keys: what is answered without one, with a wrong one, to each role, and whose jobs they are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.api_fixture import Answer
from tests.kit.api_keys import ask, bearer, client_with, keys_of, made
from tests.kit.gateway import Desk, desk
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

_OPENAI = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/models")
_WRONG = {
    "none": {},
    "empty": {"Authorization": "Bearer "},
    "other scheme": {"Authorization": "Basic YTpi"},
    "no key at all": bearer("sk-anything"),
    "unknown": bearer("orch-0123456789ab-" + "A" * 43),
    "no text": bearer("orch-0123456789ab-\xff"),
    "unknown to Anthropic": {"x-api-key": "orch-0123456789ab-" + "A" * 43},
}


@pytest.fixture
async def opened(store: Store, tmp_path: Path) -> AsyncIterator[Desk]:
    """An api on loopback for which no key was ever made."""
    async with desk(store, tmp_path) as api:
        yield api


@pytest.fixture
async def admin(store: Store) -> str:
    return await made(store, "root", role="admin")


@pytest.fixture
async def locked(admin: str, store: Store, tmp_path: Path) -> AsyncIterator[Desk]:
    """An api for which there is one key, an admin's."""
    assert admin
    async with desk(store, tmp_path) as api:
        yield api


async def _operations(api: Desk, key: str) -> list[tuple[str, str]]:
    document = (await ask(api, "GET", "/openapi.json", headers=bearer(key))).body
    return [
        (method.upper(), re.sub(r"\{[^}]*\}", "x", path))
        for path, calls in document["paths"].items()
        for method in calls
    ]


def _is_refusal(path: str, answer: Answer) -> bool:
    """Whether it is a 401 as clients of this path expect it."""
    body = answer.body
    if answer.status != 401 or not answer.headers["WWW-Authenticate"].startswith("Bearer"):
        return False
    if path == "/v1/messages":
        return bool(body["type"] == "error" and body["error"]["type"] == "authentication_error")
    if path.startswith(_OPENAI):
        return bool(body["error"]["code"] == "invalid_api_key")
    return bool(answer.problem(401)["type"] == "urn:gpu-orchestrator:problem:no-key")


@pytest.mark.parametrize("headers", _WRONG.values(), ids=_WRONG.keys())
async def test_without_a_good_key_no_operation_but_the_health_check_is_answered(
    locked: Desk, admin: str, headers: dict[str, str]
) -> None:
    operations = await _operations(locked, admin)
    assert len(operations) > 25

    for method, path in [*operations, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nowhere")]:
        answer = await ask(locked, method, path, headers=headers, json={})
        if path == "/healthz":
            assert answer.status == 200
        else:
            assert _is_refusal(path, answer), (method, path, answer)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models", "/readyz", "/"])
async def test_a_good_key_is_taken_in_either_header(locked: Desk, admin: str, path: str) -> None:
    for headers in (bearer(admin), {"x-api-key": admin}, {"Authorization": f"bearer  {admin} "}):
        assert (await ask(locked, "GET", path, headers=headers)).status in (200, 503), headers


async def test_two_keys_that_differ_are_none(locked: Desk, admin: str) -> None:
    same = await ask(locked, "GET", "/", headers={**bearer(admin), "x-api-key": admin})
    differing = await ask(locked, "GET", "/", headers={**bearer(admin), "x-api-key": "other"})
    assert (same.status, differing.status) == (200, 401)


@pytest.mark.parametrize("cut", [slice(0, -1), slice(1, None), slice(0, 18)])
async def test_part_of_a_key_is_none(locked: Desk, admin: str, cut: slice) -> None:
    assert (await ask(locked, "GET", "/", headers=bearer(admin[cut]))).status == 401


async def test_on_loopback_none_is_asked_for_until_one_is_made_and_a_needless_one_does_no_harm(
    opened: Desk, store: Store
) -> None:
    for headers in ({}, bearer("sk-no-key-needed")):
        assert (await ask(opened, "GET", "/v1/jobs", headers=headers)).status == 200

    key = await made(store)

    async def shut() -> bool:
        return (await ask(opened, "GET", "/v1/jobs")).status == 401

    await wait_until(shut, "the api asks for a key")
    assert (await ask(opened, "GET", "/v1/jobs", headers=bearer(key))).status == 200


async def test_a_revoked_key_is_refused_by_a_running_api_and_the_last_one_leaves_it_shut(
    locked: Desk, admin: str, store: Store
) -> None:
    key = await made(store)

    async def status(presented: str) -> int:
        return (await ask(locked, "GET", "/v1/jobs", headers=bearer(presented))).status

    async def good() -> bool:
        return await status(key) == 200

    async def refused(presented: str) -> bool:
        return await status(presented) == 401

    await wait_until(good, "a new key is good")
    await keys_of(store).revoke("alice")
    await wait_until(lambda: refused(key), "the revoked key is refused")
    assert await status(admin) == 200

    await keys_of(store).revoke("root")
    await wait_until(lambda: refused(admin), "the last key is refused")
    assert (await ask(locked, "GET", "/v1/jobs")).status == 401
    assert (await ask(locked, "GET", "/healthz")).status == 200


async def test_a_name_can_have_a_new_key_once_its_old_one_is_revoked(store: Store) -> None:
    first = await made(store)
    await keys_of(store).revoke("alice")
    assert await made(store) != first
    (key,) = (await keys_of(store).read()).keys
    assert (key.revoked_ms, key.hash is None) == (None, False)


async def test_an_entry_that_somebody_broke_by_hand_lets_nobody_in_and_does_not_open_the_api(
    store: Store, tmp_path: Path
) -> None:
    await store.redis.hset(store.keys.static("api_keys"), "alice", '{"name": "alice"}')
    async with desk(store, tmp_path) as api:
        assert (await ask(api, "GET", "/v1/jobs")).status == 401


async def test_what_changes_the_registry_rebalances_or_measures_is_for_admins(
    locked: Desk, admin: str, store: Store
) -> None:
    user = await made(store)
    await wait_until(lambda: locked.state.keyring.access(user) is not None, "the key is known")
    operations = await _operations(locked, admin)
    changing = [one for one in operations if one[0] not in ("GET", "HEAD")]
    own = [("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/x"), *(("POST", path) for path in _OPENAI[:4])]

    for method, path in changing:
        answer = await ask(locked, method, path, headers=bearer(user), data=b"{")
        if (method, path) in own or path == "/v1/messages":
            assert answer.status in (400, 404, 422), (method, path, answer)
        else:
            assert "role admin" in answer.problem(403)["detail"]
            admitted = await ask(locked, method, path, headers=bearer(admin), data=b"{")
            assert admitted.status not in (401, 403), (method, path)
    assert {("POST", "/v1/gpu/rebalance"), ("POST", "/v1/gpu/benchmark-model")} < set(changing)


async def test_a_preview_of_the_rebalance_is_for_everybody(store: Store, tmp_path: Path) -> None:
    key = await made(store)
    async with desk(store, tmp_path) as api, client_with(key, api.url) as client:
        assert (await client.get("/v1/gpu/rebalance")).status == 200


async def test_a_key_costs_no_call_to_redis(locked: Desk, admin: str, store: Store) -> None:
    async def calls() -> int:
        stats: Any = await store.redis.info("commandstats")
        names = ("hget", "hgetall", "get", "evalsha", "xread", "hmget")
        return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in names)

    before = await calls()
    for _ in range(400):
        assert (await ask(locked, "GET", "/", headers=bearer(admin))).status == 200
    assert await calls() - before < 200  # what the process does every second anyway


async def test_when_a_key_was_used_is_noted(locked: Desk, admin: str, store: Store) -> None:
    assert [use.used_ms for use in await keys_of(store).listed()] == [None]
    before = await store.now_ms()
    await ask(locked, "GET", "/", headers=bearer(admin))

    async def noted() -> bool:
        return (await keys_of(store).listed())[0].used_ms is not None

    await wait_until(noted, "the use is noted")
    assert ((await keys_of(store).listed())[0].used_ms or 0) >= before


async def test_the_document_declares_both_ways_to_send_a_key(locked: Desk, admin: str) -> None:
    document = (await ask(locked, "GET", "/openapi.json", headers=bearer(admin))).body
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"] == {**schemes["bearer"], "type": "http", "scheme": "bearer"}
    assert schemes["xApiKey"] == {**schemes["xApiKey"], "type": "apiKey", "in": "header", "name": "x-api-key"}
    assert document["security"] == [{"bearer": []}, {"xApiKey": []}, {}]
    for path, calls in document["paths"].items():
        for call in calls.values():
            assert ("401" in call["responses"]) is (path != "/healthz")
            assert (call.get("security") == []) is (path == "/healthz")
