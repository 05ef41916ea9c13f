"""The registry over HTTP: models come, change and go while everything runs; those of the file stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.config import HistorySettings
from shared.registry import Registration
from shared.store.control import ControlStore, PutOutcome, RemoveOutcome
from shared.store.fleet import BackendSample
from tests.kit.api_fixture import Answer, ApiClient
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.stack import running_stack
from tests.kit.store_fixture import GPU, Store, open_store
from tests.kit.waiting import wait_until

_GAMMA = {"backend": "llama_cpp", "vram_gb": 4.5, "port": 9000, "agent_types": ["Chat"]}


async def test_the_list_shows_registration_residence_load_and_what_was_learned(
    api: ApiClient, api_store: Store
) -> None:
    await api_store.submit(target="alpha")
    await api_store.claim()
    await _probe(api_store, "alpha")
    await _learned(api_store, "alpha", samples="3", seconds_per_output_token="0.01", avg_latency_ms="250")

    listed = (await api.get("/v1/gpu/models")).body["models"]

    alpha = listed[0]
    assert [model["name"] for model in listed] == ["alpha", "beta"]
    assert (alpha["source"], alpha["residence"], alpha["in_flight"]) == ("file", "resident", 1)
    assert (alpha["vram_gb"], alpha["registration"]["vram_gb"]) == (2.0, 2.0)
    assert (alpha["learned"]["samples"], alpha["learned"]["tokens_per_second"]) == (3, 100.0)
    assert alpha["benchmark"] is None
    assert listed[1]["learned"]["avg_latency_ms"] is None
    assert (await api.get("/v1/gpu/models/alpha")).body == {
        **alpha,
        "probe_age_ms": pytest.approx(0, abs=5000),
    }


async def test_a_model_is_created_then_replaced_and_every_change_is_announced(
    api: ApiClient, api_store: Store
) -> None:
    created = await _put(api, "gamma", _GAMMA)
    same = await _put(api, "gamma", _GAMMA)
    replaced = await _put(api, "gamma", {**_GAMMA, "slots": 2})

    assert (created.status, same.status, replaced.status) == (201, 200, 200)
    assert created.headers["location"] == "/v1/gpu/models/gamma"
    assert (created.body["source"], created.body["slots"], replaced.body["slots"]) == ("http", None, 2)
    kinds = [entry.fields for entry in (await api_store.dump()).streams[api_store.keys.control]]
    assert [(one["type"], one["model"]) for one in kinds][2:] == [("model.registered", "gamma")] * 2
    assert json.loads(kinds[-1]["registration"])["slots"] == 2


async def test_what_get_shows_as_registration_can_be_put_back(api: ApiClient) -> None:
    shown = (await _put(api, "gamma", _GAMMA)).body["registration"]

    again = await _put(api, "gamma", shown)

    assert (again.status, again.body["registration"]) == (200, shown)


async def test_post_creates_and_refuses_what_exists(api: ApiClient) -> None:
    first = await api.call("POST", "/v1/gpu/models", json={"name": "gamma", **_GAMMA})
    second = await api.call("POST", "/v1/gpu/models", json={"name": "gamma", **_GAMMA, "slots": 9})

    assert first.status == 201
    assert "PUT /v1/gpu/models/gamma" in second.problem(409)["detail"]
    assert (await api.get("/v1/gpu/models/gamma")).body["slots"] is None


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({**_GAMMA, "vram": 3}, "vram", "not a field of a model; known: name, backend, vram_gb"),
        ({"vram_gb": 3}, None, "neither 'port' nor 'url'"),
        ({**_GAMMA, "vram_gb": -1}, "vram_gb", "greater than or equal to 0"),
        ({**_GAMMA, "port": 0}, "port", "greater than or equal to 1"),
        ({**_GAMMA, "backend": "ollama"}, "backend", "'llama_cpp' or 'vllm'"),
        ({**_GAMMA, "url": "ftp://x"}, "url", "pattern"),
        ({**_GAMMA, "name": "delta"}, "name", "not that of the path, 'gamma'"),
        ({**_GAMMA, "source": "file"}, "source", "leave it out"),
        ({**_GAMMA, "command": "rm"}, "command", "configuration file"),
        ({**_GAMMA, "api_key_env": "HOME"}, "api_key_env", "configuration file"),
        ({**_GAMMA, "agent_types": ["no spaces"]}, "agent_types.0", "pattern"),
        ([], None, "JSON object"),
    ],
)
async def test_a_wrong_field_is_named_with_its_remedy(
    api: ApiClient, api_store: Store, body: Any, field: str | None, said: str
) -> None:
    problem = (await _put(api, "gamma", body)).problem(422)

    assert problem.get("field") == field
    assert said in problem["detail"]
    assert "gamma" not in {entry.name for entry in await api_store.fleet.registrations()}


@pytest.mark.parametrize("body", [b"", b"{", b'{"port": NaN}', b"\xff"])
async def test_a_body_that_is_no_json_is_a_400_problem(api: ApiClient, body: bytes) -> None:
    assert "JSON" in (await api.call("PUT", "/v1/gpu/models/gamma", data=body)).problem(400)["detail"]


async def test_a_name_that_no_model_can_have_is_refused(api: ApiClient) -> None:
    assert (await _put(api, "-x", _GAMMA)).problem(422)["field"] == "name"


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v1/gpu/models/alpha"), ("POST", "/v1/gpu/models"), ("DELETE", "/v1/gpu/models/alpha")],
)
async def test_an_entry_of_the_file_wins_and_the_file_is_named(
    api: ApiClient, api_store: Store, method: str, path: str
) -> None:
    before = await api_store.fleet.registrations()
    body = None if method == "DELETE" else {"name": "alpha", **_GAMMA}

    problem = (await api.call(method, path, json=body)).problem(409)

    assert "config.yaml" in problem["detail"]
    assert await api_store.fleet.registrations() == before


async def test_an_unknown_model_is_a_404_that_lists_what_there_is(api: ApiClient) -> None:
    for method in ("GET", "DELETE"):
        problem = (await api.call(method, "/v1/gpu/models/gamma")).problem(404)
        assert problem["known"] == ["alpha", "beta"]
        assert "known: alpha, beta" in problem["detail"]


async def test_a_removed_model_is_gone_from_the_list_and_for_new_jobs(
    api: ApiClient, api_store: Store
) -> None:
    await _put(api, "gamma", _GAMMA)
    accepted = await api.post({"prompt": "hi", "model": "gamma"})

    removed = await api.call("DELETE", "/v1/gpu/models/gamma")

    refused = await api.post({"prompt": "hi", "model": "gamma"})
    assert (accepted.status, removed.status, removed.text) == (202, 204, "")
    assert refused.problem(422)["field"] == "model"
    assert (await api.call("DELETE", "/v1/gpu/models/gamma")).status == 404
    last = (await api_store.dump()).streams[api_store.keys.control][-1].fields
    assert (last["type"], last["model"], last["source"]) == ("model.removed", "gamma", "http")


async def test_jobs_in_flight_end_on_a_model_that_is_removed_meanwhile(
    api: ApiClient, api_store: Store
) -> None:
    await _put(api, "gamma", _GAMMA)
    job = await api.submit(model="gamma")
    await api_store.claim(job, model="gamma")

    await api.call("DELETE", "/v1/gpu/models/gamma")
    assert await api_store.finish(job, 1, avg_latency_ms=5.0) == "FINISHED"

    assert (await api.job(job))["state"] == "succeeded"
    assert (await api_store.model("gamma"))["in_flight"] == "0"
    assert await api_store.redis.ttl(api_store.keys.model("gamma")) > 0


async def test_a_probe_that_was_under_way_leaves_nothing_for_ever(api: ApiClient, api_store: Store) -> None:
    await _put(api, "gamma", _GAMMA)
    await api.call("DELETE", "/v1/gpu/models/gamma")
    await _probe(api_store, "gamma")

    assert await api_store.redis.ttl(api_store.keys.model("gamma")) > 0


async def test_what_was_learned_stays_with_the_server_and_goes_with_it(
    api: ApiClient, api_store: Store
) -> None:
    await _put(api, "gamma", _GAMMA)
    await api_store.submit(target="gamma")
    await api_store.claim(model="gamma")
    await _learned(api_store, "gamma", samples="9", failure_count="2")

    kept = (await _put(api, "gamma", {**_GAMMA, "slots": 2})).body
    moved = (await _put(api, "gamma", {**_GAMMA, "port": 9001})).body

    assert (kept["learned"]["samples"], kept["failure_count"], kept["in_flight"]) == (9, 2, 1)
    assert (moved["learned"]["samples"], moved["failure_count"], moved["in_flight"]) == (0, 0, 1)


async def test_a_model_that_comes_again_starts_afresh(api: ApiClient, api_store: Store) -> None:
    await _put(api, "gamma", _GAMMA)
    await api.call("DELETE", "/v1/gpu/models/gamma")
    await _learned(api_store, "gamma", samples="9")

    again = await _put(api, "gamma", _GAMMA)

    assert (again.status, again.body["learned"]["samples"]) == (201, 0)
    assert await api_store.redis.ttl(api_store.keys.model("gamma")) < 0


async def test_a_name_with_a_slash_has_its_own_path(api: ApiClient) -> None:
    created = await _put(api, "org/gamma:q4", _GAMMA)

    assert created.headers["location"] == "/v1/gpu/models/org/gamma:q4"
    assert (await api.get("/v1/gpu/models/org/gamma:q4")).body["name"] == "org/gamma:q4"
    assert (await api.call("DELETE", "/v1/gpu/models/org/gamma:q4")).status == 204


async def test_a_change_whose_reply_was_lost_is_made_and_answered_once(store: Store) -> None:
    """redis-py sends the command again: the second time must not say that the model existed already."""
    entry = Registration(name="gamma", port=9000)
    async with FaultProxy(store.url) as proxy, open_store(proxy.url, fail_fast=True) as spoiled:
        control = ControlStore(spoiled.redis, spoiled.keys, HistorySettings(), 60.0)
        await control.put_model(Registration(name="delta", port=9001), replace=False)
        await control.remove_model("delta")
        await control.announce("test.first", {})
        for call, expected in (
            (lambda: control.put_model(entry, replace=False), PutOutcome.CREATED),
            (lambda: control.remove_model("gamma"), RemoveOutcome.REMOVED),
        ):
            proxy.spoil(Fault.DROP_REPLY, name="EVALSHA")
            assert await call() == expected
            assert proxy.spoiled
        proxy.spoil(Fault.DROP_REPLY, name="EVALSHA")
        await control.announce("test.second", {"a": "1"})

    control_entries = (await store.dump()).streams[store.keys.control]
    assert [entry.fields["type"] for entry in control_entries] == [
        "model.registered", "model.removed", "test.first", "model.registered", "model.removed", "test.second",
    ]  # fmt: skip


async def test_a_job_runs_on_a_model_registered_a_moment_ago(tmp_path: Path, redis_url: str) -> None:
    """The whole of it: the router routes to it and the monitor probes it, without any restart."""
    first, second = free_ports(2)
    models = [simulated_model("alpha", first), simulated_model("beta", second, vram_gb=6.0)]
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, simulated_config(models), services) as stack:
        path = f"{stack.api}/v1/gpu/models/replica"
        async with stack.http.put(path, json={"port": first, "upstream_name": "alpha", "slots": 4}) as put:
            assert put.status == 201, await put.text()
        job = await stack.ended(await stack.submit(prompt="hi", model="replica", max_tokens=4))

        async def probed() -> bool:
            async with stack.http.get(path) as got:
                return bool((await got.json())["residence"] == "resident")

        await wait_until(probed, "its monitor has probed it")
        assert (job["state"], job["decision"]["model"]) == ("succeeded", "replica")
        assert job["decision"]["port"] == first

        async with stack.http.delete(path) as deleted:
            assert deleted.status == 204
        status, refused = await stack.post({"prompt": "hi", "model": "replica"})
        assert (status, refused["field"]) == (422, "model")


async def _put(api: ApiClient, name: str, body: Any) -> Answer:
    return await api.call("PUT", f"/v1/gpu/models/{name}", json=body)


async def _probe(store: Store, model: str) -> None:
    await store.fleet.publish_backend(BackendSample(model, "b1", 1, 0, {"residence": "resident", "gpu": GPU}))


async def _learned(store: Store, model: str, **fields: str) -> None:
    for name, value in fields.items():
        await store.redis.hset(store.keys.model(model), name, value)
