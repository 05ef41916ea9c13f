"""A changed settings file takes effect in running processes, under load and without losing anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from shared.store.streams import read_range
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.settings_file import SettingsFile, said
from tests.kit.simulation import Simulation
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.waiting import wait_until

ALL = ("simulator", "monitor", "router", "api")
WORDS = 240
"""At 30 tokens a second eight seconds: several times as long as a change takes to be known everywhere."""


@pytest.fixture
async def stack(tmp_path: Path, redis_url: str) -> AsyncIterator[Stack]:
    """alpha answers at once, beta writes 30 tokens a second into one slot."""
    first, second = free_ports(2)
    models = [
        simulated_model("alpha", first),
        simulated_model("beta", second, slots=1, tokens_per_second=30.0, agent_types=["Slow"]),
    ]
    async with running_stack(tmp_path, redis_url, simulated_config(models), ALL) as stack:
        yield stack


@pytest.fixture
def file(stack: Stack) -> SettingsFile:
    return SettingsFile(stack.path)


async def test_a_model_is_added_changed_and_removed_under_load_and_nothing_is_lost(
    stack: Stack, file: SettingsFile
) -> None:
    alpha, beta = file.read()["models"]
    new_port, moved_port = free_ports(2)
    gamma = simulated_model("gamma", new_port)
    async with _load(stack) as ended:
        file.models(alpha, beta, gamma)
        await _resident(stack, "gamma")
        assert await _answers(stack, "gamma")

        long = asyncio.create_task(_stream(stack, "beta"))
        await wait_until(lambda: _in_flight(stack, "beta", 1), "beta is at work")
        waiting = await stack.submit(prompt="hi", model="beta", max_tokens=4)
        file.models({**alpha, "port": moved_port}, gamma)
        await _gone(stack, "beta")
        await wait_until(lambda: _port_is(stack, "alpha", moved_port), "alpha is registered anew")
        assert not long.done(), "the answer must still be coming when its model is gone"

        assert await _answers(stack, "alpha")
        assert await long == (WORDS, "length")
        turned_away = await stack.ended(waiting)
        await wait_until(lambda: len(ended) >= 20, "the load goes on")
    assert {job["state"] for job in ended} == {"succeeded"}
    # As after DELETE /v1/gpu/models/beta.
    assert (turned_away["state"], turned_away["error"]["type"]) == ("failed", "unknown_model")
    status, refusal = await stack.post({"prompt": "hi", "model": "beta"})
    assert (status, refusal["status"]) == (422, 422)
    await said(stack, "model beta removed", ("api", "router", "monitor", "simulator"))


async def test_what_is_deleted_over_http_ends_as_what_is_removed_from_the_file(stack: Stack) -> None:
    """The outcome that the test above expects, taken from the call itself."""
    beta = next(model for model in stack.settings.models if model.name == "beta")
    entry = {"name": "twin", "url": f"http://127.0.0.1:{beta.port}", "slots": 1}
    async with stack.http.post(f"{stack.api}/v1/gpu/models", json=entry) as answer:
        assert answer.status == 201, await answer.text()
    await _resident(stack, "twin")
    long = await stack.submit(prompt="hi", model="twin", max_tokens=WORDS)
    await wait_until(lambda: _in_flight(stack, "twin", 1), "twin is at work")
    waiting = await stack.submit(prompt="hi", model="twin", max_tokens=4)
    async with stack.http.delete(f"{stack.api}/v1/gpu/models/twin") as answer:
        assert answer.status == 204
    turned_away = await stack.ended(waiting)
    assert (turned_away["state"], turned_away["error"]["type"]) == ("failed", "unknown_model")
    assert (await stack.ended(long))["state"] == "succeeded"


async def test_a_broken_file_changes_nothing_and_every_process_says_so_once(
    stack: Stack, file: SettingsFile
) -> None:
    before = await _json(stack, "/v1/gpu/models")
    broken = "queue: {bound: 0}\nmodels: [{name: other, port: 9}]\n"
    line = "the changed settings are wrong, so nothing changes"
    async with _load(stack) as ended:
        file.text(broken)
        await said(stack, line, ALL)
        many = len(ended) + 10
        await wait_until(lambda: len(ended) >= many, "the load goes on")
    assert {job["state"] for job in ended} == {"succeeded"}
    after = await _json(stack, "/v1/gpu/models")
    assert [(one["name"], one["port"]) for one in after["models"]] == [
        (one["name"], one["port"]) for one in before["models"]
    ]

    file.back()
    await said(stack, "is right again", ALL)
    for service in ALL:
        told = [said_ for said_ in stack.output(service).splitlines() if line in said_]
        assert len(told) == 1, f"{service}: {told}"
        assert "queue.bound = 0: Input should be greater than or equal to 1" in told[0]


async def test_a_file_that_is_gone_or_names_no_model_takes_none_away(
    stack: Stack, file: SettingsFile
) -> None:
    file.set("log", level="DEBUG")
    await said(stack, "log.level INFO -> DEBUG", ALL)
    whole = file.read()
    stack.path.unlink()
    await said(stack, "nothing changes till it is back", ALL)
    assert await _answers(stack, "alpha")

    del whole["models"]
    file.whole({**whole, "queue": {"bound": 77}})
    await said(stack, "queue.bound 10000 -> 77", ALL)
    await said(stack, "models: the file names none now", ALL)
    assert (await _json(stack, "/v1/gpu/status"))["queue"]["bound"] == 77
    assert await _answers(stack, "alpha")


async def test_a_changed_threshold_moves_the_levels_and_with_them_the_jobs(
    stack: Stack, file: SettingsFile
) -> None:
    simulation = Simulation(stack)
    await simulation.gpu(utilization=0.60)
    await simulation.level(pressure="normal", full="0")

    file.set("memory_thresholds", low=0.1, normal=0.2, high=0.3, critical=0.5)
    await simulation.level(pressure="critical", full="1")
    job = await stack.submit(prompt="hi", model="alpha", max_tokens=4)
    held = await simulation.held(job)
    assert held["decision"]["code"] == "memory_full"

    file.back()
    await simulation.level(pressure="normal", full="0")
    assert (await stack.ended(job))["state"] == "succeeded"


async def test_what_the_router_and_the_api_read_at_each_use_counts_at_once(
    stack: Stack, file: SettingsFile
) -> None:
    simulation = Simulation(stack)
    await simulation.gpu(temperature_c=90)
    await simulation.level(thermal="critical")
    file.set("queue", bound=1)
    await wait_until(lambda: _bound_is(stack, 1), "the api knows the new bound")

    waiting = await stack.submit(prompt="hi", model="alpha", max_tokens=4)
    status, refusal = await stack.post({"prompt": "hi", "model": "alpha"})
    assert status == 429
    assert "queue.bound = 1" in refusal["detail"]

    file.set("thermal_thresholds", normal=92, warning=95, throttling=98)
    assert (await stack.ended(waiting))["state"] == "succeeded"


async def test_what_needs_a_restart_keeps_its_value_and_is_named_by_whom_it_concerns(
    stack: Stack, file: SettingsFile
) -> None:
    file.set("api", port=stack.settings.api.port + 1)
    await said(stack, "api.port: needs a restart of api; until then what was counts", ("api",))
    file.set("router", lease_s=20, max_in_flight=99)
    await said(stack, "router.lease_s: needs a restart of router", ("router",))
    await said(stack, "router.max_in_flight 256 -> 99", ("router",))

    assert await _answers(stack, "alpha")
    assert stack.output("api").count("api.port: needs a restart") == 1
    assert "needs a restart" not in stack.output("simulator")


async def test_two_apis_on_one_file_register_a_model_once_and_never_take_it_back(
    stack: Stack, file: SettingsFile
) -> None:
    (port,) = free_ports(1)
    stack.start("api", instance="second", environ={"ORCH_API__PORT": str(port)})
    await said(stack, "Redis answers", ("second",))
    await wait_until(lambda: _settled(stack), "the second has published its models, too")
    before = await _registered(stack)
    gamma = simulated_model("gamma", free_ports(1)[0])
    file.models(*file.read()["models"], gamma)
    await said(stack, "model gamma added", ("api", "second"))
    await _resident(stack, "gamma")

    looks = await stack.redis.hget(stack.keys.model("gamma"), "probe_seq")
    await wait_until(
        lambda: _probed_since(stack, "gamma", int(str(looks)) + 20), "both apis have looked again"
    )
    after = await _registered(stack)
    assert after[len(before) :] == [("model.registered", "gamma")]


async def _settled(stack: Stack) -> bool:
    return "second" in {record.instance for record in await stack.fleet.services()}


async def _registered(stack: Stack) -> list[tuple[str, str]]:
    """What was said of models in ``orch:control``, oldest first."""
    entries = await read_range(stack.redis, stack.keys.control, count=1000)
    said_ = [(entry.fields["type"], entry.fields.get("model", "")) for entry in entries]
    return [one for one in said_ if one[0].startswith("model.")]


async def _probed_since(stack: Stack, model: str, seq: int) -> bool:
    return int(str(await stack.redis.hget(stack.keys.model(model), "probe_seq"))) >= seq


@asynccontextmanager
async def _load(stack: Stack) -> AsyncIterator[list[Json]]:
    """Jobs for any Chat model, four at a time, while the block runs; the list is of those that have ended."""
    ended: list[Json] = []

    async def caller() -> None:
        while True:
            ended.append(await stack.ended(await stack.submit(prompt="hi", agent_type="Chat", max_tokens=8)))

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    try:
        await wait_until(lambda: len(ended) >= 4, "the load runs")
        yield ended
    finally:
        for task in callers:
            if task.done():
                task.result()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _stream(stack: Stack, model: str) -> tuple[int, str]:
    """A streamed answer of ``WORDS`` tokens read to its end; how many came, and why it ended."""
    options = {"include_usage": True}
    body = {"model": model, "prompt": "hi", "max_tokens": WORDS, "stream": True, "stream_options": options}
    async with stack.http.post(f"{stack.api}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        text = (await answer.content.read()).decode()
    *events, end = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert end == "[DONE]"
    parsed = [json.loads(event) for event in events]
    reasons = [choice["finish_reason"] for event in parsed for choice in event["choices"]]
    return parsed[-1]["usage"]["completion_tokens"], reasons[-1]


async def _answers(stack: Stack, model: str) -> bool:
    job = await stack.ended(await stack.submit(prompt="hi", model=model, max_tokens=4))
    return (job["state"], job["decision"]["model"]) == ("succeeded", model)


async def _resident(stack: Stack, name: str) -> None:
    async def there() -> bool:
        models = (await _json(stack, "/v1/gpu/status"))["models"]
        return name in models and models[name]["residence"] == "resident"

    await wait_until(there, f"{name} is there")


async def _gone(stack: Stack, name: str) -> None:
    async def gone() -> bool:
        return name not in (await _json(stack, "/v1/gpu/status"))["models"]

    await wait_until(gone, f"{name} is registered no longer")


async def _port_is(stack: Stack, name: str, port: int) -> bool:
    return bool((await _json(stack, f"/v1/gpu/models/{name}"))["port"] == port)


async def _bound_is(stack: Stack, bound: int) -> bool:
    return bool((await _json(stack, "/v1/gpu/status"))["queue"]["bound"] == bound)


async def _in_flight(stack: Stack, name: str, count: int) -> bool:
    return await stack.in_flight(name) == count


async def _json(stack: Stack, path: str) -> Json:
    async with stack.http.get(f"{stack.api}{path}") as answer:
        assert answer.status == 200, await answer.text()
        body: Json = await answer.json()
        return body
