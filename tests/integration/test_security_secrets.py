"""No key and no password is ever written down: not in a log, an error, an event, or anything in Redis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.store.client import connect_reader
from tests.kit.api_keys import bearer, made
from tests.kit.configs import simulated_config
from tests.kit.redis_fixture import redis_reply
from tests.kit.stack import Stack
from tests.kit.store_dump import dump
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

_SERVICES = ("simulator", "monitor", "router", "api")
_PASSWORD, _WRONG_PASSWORD, _BACKENDS_KEY = "open-sesame-7", "open-barley-8", "sk-abcdefghij0123456789"
_CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


async def _use_everywhere(stack: Stack, key: str) -> set[str]:
    """Send a key with calls of every outcome, good and bad; the answers."""
    said = set()
    calls = [
        ("GET", "/v1/jobs", None),
        ("GET", "/v1/jobs/x", None),
        ("GET", "/nowhere", None),
        ("POST", "/v1/jobs?wait=20", {"prompt": "hi", "model": "alpha", "max_tokens": 4}),
        ("POST", "/v1/jobs", {"prompt": 1}),
        ("POST", "/v1/chat/completions", _CHAT),
        ("POST", "/v1/chat/completions", {**_CHAT, "stream": True}),
        ("POST", "/v1/chat/completions", {**_CHAT, "model": "none"}),
        ("GET", f"/v1/jobs/x?api_key={key}", None),
        ("POST", "/v1/messages", _CHAT),
        ("DELETE", "/v1/gpu/models/alpha", None),
        ("POST", "/v1/gpu/rebalance", None),
        ("GET", "/v1/gpu/status", None),
    ]
    for method, path, body in calls:
        for headers in (bearer(key), {"x-api-key": key}, {**bearer(key), "Host": "evil.example"}):
            async with stack.http.request(method, stack.api + path, json=body, headers=headers) as answer:
                said.add(f"{answer.status} {dict(answer.headers)} {await answer.text()}")
    return said


def _files(directory: Path) -> dict[str, str]:
    """Everything that the processes wrote; the settings are the test's own."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != "config.yaml"]
    return {path.name: path.read_text(errors="replace") for path in paths}


def _with(url: str, password: str) -> str:
    """The address of a Redis with a name and a password."""
    return url.replace("redis://", f"redis://services:{password}@")


@pytest.mark.timeout(120)
async def test_no_key_good_or_bad_is_written_anywhere(tmp_path: Path, redis_url: str) -> None:
    redis_reply(redis_url, "ACL", "SETUSER", "services", "on", f">{_PASSWORD}", "~*", "&*", "+@all")
    config = simulated_config(log={"level": "DEBUG"})
    config["redis"] = {"url": _with(redis_url, _PASSWORD)}
    config["models"][0]["api_key_env"] = "BACKENDS_KEY"
    async with Stack(tmp_path, config) as stack:
        reader = connect_reader(redis_url, "test")
        store = Store(redis_url, stack.redis, reader, stack.keys, stack.jobs, stack.fleet)
        user = await made(store, "alice", in_flight=2)
        admin = await made(store, "root", role="admin")
        wrong = user[:-1] + ("A" if user[-1] != "A" else "B")
        for service in _SERVICES:
            stack.start(service, environ={"BACKENDS_KEY": _BACKENDS_KEY})
        wrong_url = {"ORCH_REDIS__URL": _with(redis_url, _WRONG_PASSWORD)}
        stack.start("router", instance="locked-out", environ=wrong_url)
        no_url = {"ORCH_REDIS__URL": _with(redis_url, _WRONG_PASSWORD).replace("redis:", "http:")}
        misled = stack.start("router", instance="misled", environ=no_url)

        await wait_until(lambda: _ready(stack, admin), "everything is up", timeout_s=30)
        said = set()
        for key in (user, wrong, admin):
            said |= await _use_everywhere(stack, key)
        assert {answer[:3] for answer in said} >= {"200", "401", "403", "404", "421", "422"}

        said_why = "the locked-out router said why it waits"
        await wait_until(lambda: "Redis" in stack.output("locked-out"), said_why)
        written = _files(tmp_path)
        written["Redis"] = json.dumps(str(await dump(stack.redis, stack.keys)))
        written["answers"] = " ".join(said)
        assert {"api.out", "api.log", "router.out", "router.log", "Redis"} <= written.keys()
        assert "401 no-key" in written["api.log"]
        assert misled.wait(20) == 2
        assert "redis.url" in written["misled.out"]
        # The id of a key is no secret; what stands behind it is.
        keys = [key.split("-", 2)[2] for key in (user, wrong, admin)]
        for name, text in written.items():
            for secret in (*keys, _BACKENDS_KEY, _PASSWORD, _WRONG_PASSWORD):
                assert secret not in text, f"a secret stands in {name}"
        await reader.aclose()
    redis_reply(redis_url, "ACL", "DELUSER", "services")


async def _ready(stack: Stack, key: str) -> bool:
    try:
        async with stack.http.get(f"{stack.api}/readyz", headers=bearer(key)) as answer:
            return answer.status == 200
    except OSError:
        return False
