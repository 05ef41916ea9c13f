"""What cannot be read goes to the dead letters with its reason, and the router lives on."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from shared.store.server import EmbeddedRedis
from tests.kit.configs import simulated_config
from tests.kit.redis_fixture import empty
from tests.kit.stack import Stack, running_stack
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BY_HAND: dict[str, Any] = {
    "v": 1,
    "type": "job.request",
    "prompt": "hi",
    "agent_type": "Chat",
    "max_tokens": 16,
}
"""The XADD of the contract."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_stack(
    tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis
) -> AsyncIterator[Stack]:
    """One stack for all tests of this module."""
    empty(redis_server.url)
    services = ("simulator", "monitor", "router", "api")
    directory = tmp_path_factory.mktemp("poison")
    async with running_stack(directory, redis_server.url, simulated_config(), services) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def stack(whole_stack: Stack) -> AsyncIterator[Stack]:
    """The stack, which serves after the test as before."""
    yield whole_stack
    job = await whole_stack.ended(await whole_stack.submit(prompt="still here", max_tokens=4))
    assert job["state"] == "succeeded"
    assert whole_stack.output("router").count(" is up, ") == 1, "the router was not restarted"


async def _add(stack: Stack, fields: Mapping[str, Any]) -> str:
    entry: dict[Any, Any] = {**fields}
    return str(await stack.redis.xadd(stack.keys.requests, entry))


async def _letter(stack: Stack, entry: str) -> Mapping[str, str]:
    async def written() -> Mapping[str, str] | None:
        letters = await stack.dead_letters()
        return next((fields for fields in letters if fields.get("entry") == entry), None)

    return await wait_until(written, f"entry {entry} is a dead letter")


async def test_the_xadd_of_the_contract_runs_as_a_job_named_after_its_entry(stack: Stack) -> None:
    entry = await _add(stack, BY_HAND)

    async def known() -> bool:
        async with stack.http.get(f"{stack.api}/v1/jobs/x-{entry}") as answer:
            return answer.status == 200

    await wait_until(known, "the job is known")
    job = await stack.ended(f"x-{entry}")
    assert (job["state"], job["agent_type"]) == ("succeeded", "Chat")
    assert job["result"]["usage"]["completion_tokens"] == 16


async def test_nested_fields_of_an_xadd_are_json(stack: Stack) -> None:
    entry = await _add(
        stack,
        {
            "v": 1,
            "type": "job.request",
            "messages": '[{"role": "user", "content": "hi"}]',
            "metadata": '{"from": "redis-cli"}',
            "max_tokens": 4,
        },
    )

    async def over() -> bool:
        record = await stack.jobs.get(f"x-{entry}")
        return record is not None and record.state == "succeeded"

    await wait_until(over, "the job succeeds")
    assert (await stack.job(f"x-{entry}"))["metadata"] == {"from": "redis-cli"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"messages": "{not json", "prompt": None}, "messages"),
        ({"type": "job.unheard_of"}, "type"),
        ({"v": 7}, "v"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"priority": 11}, "priority"),
        ({"model": "nobody"}, "nobody"),
        ({"agent_type": "Nothing"}, "Chat"),
        ({"metadata": "[1]"}, "metadata"),
        ({"job_id": "mine"}, "job_id"),
        ({"prompt": b"\xff\xfe\x00bytes", "max_tokens": "x"}, "max_tokens"),
        ({"prompt": "p" * 10_000_000}, "max_request_bytes"),
    ],
)
async def test_a_wrong_entry_is_a_dead_letter_that_names_what_is_wrong(
    stack: Stack, changes: dict[str, Any], named: str
) -> None:
    fields = {name: value for name, value in {**BY_HAND, **changes}.items() if value is not None}

    letter = await _letter(stack, await _add(stack, fields))

    assert named in letter["reason"]
    assert len(letter["raw"]) < 20_000

    async def settled() -> bool:
        pending = await stack.redis.xpending(stack.keys.requests, "router")
        return bool(pending["pending"] == 0)

    await wait_until(settled, "nothing is pending")


async def test_a_ten_megabyte_prompt_is_refused_by_the_api_with_the_limit(stack: Stack) -> None:
    body = io.BytesIO(json.dumps({"prompt": "p" * 10_000_000}).encode())

    async with stack.http.post(f"{stack.api}/v1/jobs", data=body) as answer:
        problem = await answer.json(content_type=None)

    assert answer.status == 413
    assert "max_body_bytes" in problem["detail"]


async def test_poison_between_good_entries_does_not_stop_them(stack: Stack) -> None:
    """Hazard H11: one bad among ten good; ten run, one is a dead letter."""
    before = await stack.redis.xlen(stack.keys.dead)
    good = [await _add(stack, BY_HAND) for _ in range(5)]
    bad = await _add(stack, {"v": 1, "type": "job.request"})
    good += [await _add(stack, BY_HAND) for _ in range(5)]

    await _letter(stack, bad)
    for entry in good:

        async def over(entry: str = entry) -> bool:
            record = await stack.jobs.get(f"x-{entry}")
            return record is not None and record.state == "succeeded"

        await wait_until(over, f"x-{entry} succeeds")
    assert await stack.redis.xlen(stack.keys.dead) == before + 1
