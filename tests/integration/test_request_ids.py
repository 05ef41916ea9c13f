"""The id of a request: taken or made, answered, kept with its job, told to the backend, in every log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared.store.streams import read_range
from tests.kit.api_fixture import ApiClient
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.recording_proxy import RecordingProxy, recording_proxy
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

ID = "X-Request-ID"
CHAT: Json = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
CHAT_PATH = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/v1/jobs", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/jobs/none", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/jobs", 405),
        ("POST", "/v1/jobs", 400),
        ("POST", CHAT_PATH, 400),
        ("GET", CHAT_PATH, 405),
        ("POST", "/chat/completions", 404),
        ("GET", "/openapi.json", 200),
    ],
)
async def test_every_answer_repeats_the_id_that_its_client_gave(
    api: ApiClient, method: str, path: str, status: int
) -> None:
    body = b"{" if method == "POST" else None
    async with api.http.request(method, api.url + path, data=body, headers={ID: "mine 7"}) as answer:
        assert (answer.status, answer.headers.getall(ID)) == (status, ["mine 7"])


async def test_a_refusal_at_the_rim_has_the_id_too(api: ApiClient) -> None:
    headers = {ID: "mine", "Host": "evil.example"}
    async with api.http.get(f"{api.url}/v1/jobs", headers=headers) as answer:
        assert (answer.status, answer.headers[ID]) == (421, "mine")


@pytest.mark.parametrize("given", ["", "   ", "x" * 129, "tab\there", "straße"])
async def test_what_is_no_id_is_replaced_by_a_new_one(api: ApiClient, given: str) -> None:
    found = set()
    for _ in range(2):
        async with api.http.get(f"{api.url}/v1/jobs", headers={ID: given}) as answer:
            found.add(answer.headers[ID])
    assert len(found) == 2
    assert all(len(one) == 32 and one.isalnum() for one in found)


async def test_a_job_keeps_the_id_in_its_hash_its_entry_its_events_and_its_answer(
    api: ApiClient, api_store: Store
) -> None:
    answer = await api.post({"prompt": "hi", "model": "alpha"}, **{ID: "x" * 128})
    job_id = answer.body["job_id"]

    assert answer.body["request_id"] == (await api.job(job_id))["request_id"] == "x" * 128
    assert (await api_store.job(job_id)).fields["request_id"] == "x" * 128
    (request,) = await read_range(api_store.redis, api_store.keys.requests)
    assert request.fields["request_id"] == "x" * 128
    (queued,) = await api_store.events()
    assert queued.fields["request_id"] == "x" * 128


@dataclass(frozen=True)
class Traced:
    """A stack whose log says all, and what came to its two backends."""

    stack: Stack
    proxies: dict[str, RecordingProxy]

    def lines(self, service: str, **fields: Any) -> list[Json]:
        """What a service logged on stderr, with these fields."""
        found = [json.loads(line) for line in self.stack.output(service).splitlines()]
        return [line for line in found if fields.items() <= line.items()]

    async def line(self, service: str, **fields: Any) -> Json:
        """The one such line, once it is there."""
        found = await wait_until(lambda: self.lines(service, **fields), f"{service} logs {fields}")
        assert len(found) == 1, found
        return found[0]


@pytest.fixture(params=["routers decide"])
async def traced(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> AsyncIterator[Traced]:
    fast = {"fast_path": request.param == "the api decides"}
    ports = free_ports(2)
    behind = {
        "cpp": simulated_model("cpp-behind", ports[0]),
        "vllm": simulated_model("vllm-behind", ports[1], backend="vllm"),
    }
    async with AsyncExitStack() as leaving:
        proxies = {
            name: await leaving.enter_async_context(recording_proxy(f"http://127.0.0.1:{model['port']}"))
            for name, model in behind.items()
        }
        models = [
            {"name": name, "url": proxies[name].url, "backend": model["backend"], "vram_gb": 1.0}
            | {"upstream_name": model["name"], "agent_types": ["Traced"]}
            for name, model in behind.items()
        ]
        config = simulated_config([*behind.values(), *models], log={"level": "DEBUG"}, api=fast)
        services = ("simulator", "monitor", "router", "api")
        stack = await leaving.enter_async_context(running_stack(tmp_path, redis_url, config, services))
        yield Traced(stack, proxies)


@pytest.mark.parametrize("traced", ["the api decides", "routers decide"], indirect=True)
async def test_a_job_is_found_by_its_request_in_every_log_and_at_its_backend(
    request: pytest.FixtureRequest, traced: Traced
) -> None:
    stack = traced.stack
    decider = "api" if request.node.callspec.params["traced"] == "the api decides" else "router"
    status, body = await stack.post(
        {"prompt": "hi", "model": "cpp", "max_tokens": 4}, wait_s=30, **{ID: "r1"}
    )
    assert (status, body["state"], body["request_id"]) == (200, "succeeded", "r1")

    decided = await traced.line(decider, event="decision", request="r1")
    assert (decided["action"], decided["job"], decided["model"]) == ("dispatch", body["job_id"], "cpp")
    assert decided["level"] == "INFO"
    ended = await traced.line("router", event="dispatch", request="r1")
    assert (ended["job"], ended["attempt"], ended["outcome"], ended["tokens"]) == (
        body["job_id"], 1, "succeeded", 4,
    )  # fmt: skip
    assert min(ended["queue_ms"], ended["first_token_ms"], ended["total_ms"]) >= 0
    assert (await traced.line("api", event="request", request="r1"))["status"] == 200
    assert (await traced.line("api", event="submit", request="r1"))["job"] == body["job_id"]
    assert [post.headers["x-request-id"] for post in traced.proxies["cpp"].posts] == ["r1"]
    decisions = await read_range(stack.redis, stack.keys.decisions)
    assert [entry.fields["request_id"] for entry in decisions] == ["r1"]
    events = await stack.events(body["job_id"])
    assert {entry.fields["request_id"] for entry in events} == {"r1"}
    assert len(events) == 3


@pytest.mark.parametrize("traced", ["the api decides", "routers decide"], indirect=True)
async def test_an_openai_request_is_found_by_its_id_in_the_logs_and_at_its_backend(
    request: pytest.FixtureRequest, traced: Traced
) -> None:
    stack = traced.stack
    decider = "api" if request.node.callspec.params["traced"] == "the api decides" else "router"
    for number, streams in enumerate((False, True)):
        named = f"r{number}"
        async with stack.http.post(
            stack.api + CHAT_PATH, json={**CHAT, "model": "cpp", "stream": streams}, headers={ID: named}
        ) as answer:
            assert (answer.status, answer.headers[ID]) == (200, named)
            await answer.read()
            job_id = answer.headers["x-orchestrator-job-id"]
        ended = await traced.line("api", event="dispatch", request=named)
        assert (ended["job"], ended["model"], ended["outcome"]) == (job_id, "cpp", "succeeded")
        assert ended["tokens"] == 4
        decided = await traced.line(decider, event="decision", request=named)
        assert (decided["job"], decided["level"]) == (job_id, "DEBUG" if decider == "api" else "INFO")
        assert (await stack.job(job_id))["request_id"] == named
    assert [post.headers["x-request-id"] for post in traced.proxies["cpp"].posts] == ["r0", "r1"]
    decisions = await read_range(stack.redis, stack.keys.decisions)
    assert {entry.fields["request_id"] for entry in decisions} == {"r0", "r1"}


async def test_vllm_gets_an_id_that_it_has_not_seen_before(traced: Traced) -> None:
    """It refuses one that it still knows: several requests of one client's id would end each other."""
    stack = traced.stack
    for _ in range(2):
        job = {"prompt": "hi", "model": "vllm", "max_tokens": 4}
        status, body = await stack.post(job, wait_s=30, **{ID: "same"})
        assert (status, body["state"]) == (200, "succeeded")
        assert traced.proxies["vllm"].last.headers["x-request-id"] == f"same.{body['job_id']}.1"
    async with stack.http.post(
        stack.api + CHAT_PATH, json={**CHAT, "model": "vllm"}, headers={ID: "same"}
    ) as answer:
        job_id = answer.headers["x-orchestrator-job-id"]
    assert traced.proxies["vllm"].last.headers["x-request-id"] == f"same.{job_id}.1"


async def test_a_hold_is_logged_once_however_often_the_routers_look(traced: Traced) -> None:
    stack = traced.stack
    await stack.redis.hset(stack.keys.model("cpp"), "breaker_open_until_ms", 2**52)
    job_id = await stack.submit(prompt="hi", model="cpp")
    held = await traced.line("router", event="decision", action="hold", job=job_id)
    for number in range(3):
        await stack.submit(prompt="hi", model="cpp", metadata={"number": number})

    async def looked() -> bool:
        return (await stack.jobs.counts())[0] == 4

    await wait_until(looked, "all four wait")
    status, _ = await stack.post({"prompt": "hi", "model": "vllm", "max_tokens": 4}, wait_s=30)
    assert status == 200
    assert traced.lines("router", action="hold") == [held]


async def test_a_benchmark_is_found_by_its_request(traced: Traced) -> None:
    stack = traced.stack
    query = "model_name=cpp&count=2&max_tokens=4&prompt_tokens=8&duration_s=20"
    async with stack.http.post(
        f"{stack.api}/v1/gpu/benchmark-model?{query}", headers={ID: "bench"}
    ) as answer:
        assert (answer.status, answer.headers[ID]) == (200, "bench")
    posts = traced.proxies["cpp"].posts
    assert len(posts) >= 2
    assert {post.headers["x-request-id"] for post in posts} == {"bench"}
    said = [line.get("message", "") for line in traced.lines("api", request="bench")]
    assert any(line.startswith("benchmark ") and "begins" in line for line in said)


async def test_a_request_written_by_hand_may_bring_its_id(traced: Traced) -> None:
    stack = traced.stack
    fields: dict[Any, Any] = {"v": "1", "type": "job.request", "prompt": "hi", "model": "cpp"}
    known = []
    for given in ("by hand", "line\nbreak"):
        fields["request_id"] = given
        entry: Any = await stack.redis.xadd(stack.keys.requests, fields)
        known.append(f"x-{entry}")

    async def over() -> bool:
        records = [await stack.jobs.get(job_id) for job_id in known]
        return all(record is not None and record.state == "succeeded" for record in records)

    await wait_until(over, "both succeed", timeout_s=30)
    assert (await stack.job(known[0]))["request_id"] == "by hand"
    made = (await stack.job(known[1]))["request_id"]
    assert len(made) == 32
    assert made.isalnum()
