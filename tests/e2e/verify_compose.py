"""Builds and runs the container files for real: ``make verify-compose``, with Docker or as root on Debian.

One story on one engine, so the tests depend on their order. A plain pytest doesn't collect it: where there
is no engine it has to install one, and that takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.kit.compose import BASE, COMPOSE
from tests.kit.configs import simulated_model
from tests.kit.docker_engine import Engine, docker_engine, output
from tests.kit.redis_fixture import free_port
from tests.kit.stack import ROOT, Json
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROJECT = "gpu-orchestrator-verify"
TAG = "verify"
IMAGE = f"gpu-orchestrator:{TAG}"
OURS = ("simulator", "monitor", "router", "api")
LARGEST_MB = 200
"""What our layers may add to the base image; measured 2026-11: 135 MB, of which numpy is 54."""
GRACE_S = 15.0
"""``stop_grace_period`` of the router."""
PROMPT: Json = {"prompt": "Say hello.", "agent_type": "Chat", "max_tokens": 16}


@dataclass(frozen=True, slots=True)
class Deployment:
    """The compose project on the engine, its api on a free port."""

    engine: Engine
    files: tuple[Path, ...]
    port: int

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str, **variables: str) -> str:
        named = [word for file in self.files for word in ("--file", str(file))]
        command = [str(COMPOSE), "--project-name", PROJECT, "--project-directory", str(ROOT),
                   "--env-file", os.devnull, *named, *arguments]  # fmt: skip
        own = {"API_PORT": str(self.port), "TAG": TAG}
        return output(command, {**self.engine.environ, **own, **variables})

    def redis(self, *command: str) -> str:
        """As a person would: ``docker compose exec redis redis-cli ...``."""
        return self.compose("exec", "--no-TTY", "redis", "redis-cli", *command).strip()

    def container(self, service: str, number: int = 1) -> Json:
        """What ``docker inspect`` says of one replica."""
        name = f"{PROJECT}-{service}-{number}"
        found: list[Json] = json.loads(self.engine.docker("inspect", name))
        return found[0]

    def inside(self, service: str, *command: str) -> str:
        return self.compose("exec", "--no-TTY", service, *command)

    def instances(self, service: str) -> set[str]:
        """The names under which that service is on the list in Redis."""
        keys = self.redis("HKEYS", "orch:services").split()
        return {key for key in keys if key.startswith(f"{service}-")}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The stack, built and up with nothing configured."""
    redis_image = str(yaml.safe_load(BASE.read_text())["services"]["redis"]["image"])
    (python_image,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    with docker_engine(redis_image, python_image) as engine:
        files: tuple[Path, ...] = (BASE,)
        if engine.own:
            override = tmp_path_factory.mktemp("compose") / "network.yml"
            builds = {name: {"build": {"network": "host"}} for name in OURS}
            override.write_text(yaml.safe_dump({"services": builds}))
            files = (BASE, override)
        made = Deployment(engine, files, free_port())
        try:
            made.compose("build")
            made.compose("up", "--detach", "--wait")
            yield made
        finally:
            made.compose("down", "--volumes", "--timeout", "5")


async def post(deployment: Deployment, path: str, body: Json) -> tuple[int, Json]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(deployment.api + path, json=body) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


async def get(deployment: Deployment, path: str) -> tuple[int, Json]:
    try:
        async with aiohttp.ClientSession() as http, http.get(deployment.api + path) as answer:
            return answer.status, await answer.json(content_type=None)
    except aiohttp.ClientError:
        return 0, {}


async def ready(deployment: Deployment) -> None:
    async def answers() -> bool:
        return (await get(deployment, "/readyz"))[0] == 200

    await wait_until(answers, "the api says ready", timeout_s=60)


async def answered(deployment: Deployment) -> Json:
    status, job = await post(deployment, "/v1/jobs?wait=30", PROMPT)
    assert (status, job["state"]) == (200, "succeeded"), job
    return job


async def test_every_container_is_healthy_and_a_job_is_answered(deployment: Deployment) -> None:
    states = {name: deployment.container(name)["State"]["Health"]["Status"] for name in ("redis", *OURS)}
    assert set(states.values()) == {"healthy"}, states

    job = await answered(deployment)

    assert job["decision"]["gpu"] == "gpu-host/0"
    assert "[simulated" in job["result"]["text"]
    assert int(deployment.redis("XLEN", "orch:decisions")) > 0


async def test_an_openai_client_is_answered(deployment: Deployment) -> None:
    body: Json = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    status, answer = await post(deployment, "/v1/chat/completions", body)

    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"]


def test_nothing_is_reachable_but_the_api_on_loopback(deployment: Deployment) -> None:
    bound: dict[str, Any] = {
        name: {port: on for port, on in deployment.container(name)["NetworkSettings"]["Ports"].items() if on}
        for name in ("redis", *OURS)
    }
    assert bound.pop("api") == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(deployment.port)}]}
    assert not any(bound.values()), bound


@pytest.mark.parametrize("service", ["redis", *OURS])
def test_a_process_has_no_rights_to_spare(deployment: Deployment, service: str) -> None:
    status = deployment.inside(service, "cat", "/proc/1/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())

    assert fields["Uid"].split()[0] != "0"
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    with pytest.raises(subprocess.CalledProcessError, match="touch") as refused:
        deployment.inside(service, "touch", "/opt/x")
    assert "Read-only file system" in refused.value.stderr + "".join(refused.value.__notes__)


def test_the_image_is_small(deployment: Deployment) -> None:
    (base,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    sizes = [
        int(deployment.engine.docker("image", "inspect", "-f", "{{.Size}}", name)) for name in (base, IMAGE)
    ]
    added_mb = (sizes[1] - sizes[0]) / 1e6
    sys.stdout.write(f"image {sizes[1] / 1e6:.0f} MB, of which ours {added_mb:.0f} MB\n")

    assert added_mb < LARGEST_MB


async def test_three_routers_have_three_names(deployment: Deployment) -> None:
    deployment.compose("up", "--detach", "--wait", "--scale", "router=3")

    assert len(deployment.instances("router")) == 3
    await answered(deployment)
    deployment.compose("up", "--detach", "--wait", "--scale", "router=1")
    await wait_until(lambda: len(deployment.instances("router")) == 1, "two routers have left", timeout_s=30)


async def test_a_router_that_is_killed_comes_back(deployment: Deployment) -> None:
    before = deployment.container("router")["RestartCount"]
    with suppress(subprocess.CalledProcessError):  # the container ends, and takes this command along
        deployment.inside("router", "python", "-c", _KILL)

    await wait_until(
        lambda: deployment.container("router")["RestartCount"] > before, "it is started again", timeout_s=30
    )
    await ready(deployment)
    await answered(deployment)


async def test_work_in_flight_ends_before_the_stack_has_stopped(deployment: Deployment) -> None:
    status, job = await post(deployment, "/v1/jobs", {**PROMPT, "model": "tiny-llama-1b", "max_tokens": 800})
    assert status == 202, job
    key = f"orch:job:{job['job_id']}"
    await wait_until(lambda: deployment.redis("HGET", key, "state") == "running", "it runs")

    begun = time.monotonic()
    deployment.compose("stop")
    took_s = time.monotonic() - begun
    codes = {name: deployment.container(name)["State"]["ExitCode"] for name in ("redis", *OURS)}
    deployment.compose("up", "--detach", "--wait")

    sys.stdout.write(f"stopped in {took_s:.1f} s\n")
    assert set(codes.values()) == {0}, codes
    assert took_s < GRACE_S
    _, found = await get(deployment, f"/v1/jobs/{job['job_id']}")
    assert (found["state"], found["attempt"]) == ("succeeded", 1)


async def test_what_was_accepted_outlives_its_containers(deployment: Deployment) -> None:
    job = await answered(deployment)
    deployment.compose("down")
    deployment.compose("up", "--detach", "--wait")

    _, found = await get(deployment, f"/v1/jobs/{job['job_id']}")

    assert found["result"] == job["result"]


async def test_with_a_configuration_file_the_models_of_this_machine_are_used(
    deployment: Deployment, tmp_path: Path
) -> None:
    asked = "import socket; print(socket.gethostbyname('host.docker.internal'))"
    machine = deployment.inside("router", "python", "-c", asked).strip()
    model = simulated_model("mine", free_port())
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"models": [{**model, "simulated": False}]}))

    with server_of_this_machine(tmp_path, machine, model):
        deployment.compose("up", "--detach", "--wait", CONFIG=str(config))
        job = await answered(deployment)
        simulator = deployment.compose("logs", "--no-color", "simulator", CONFIG=str(config))

    assert (job["decision"]["model"], job["decision"]["gpu"]) == ("mine", None)
    assert job["decision"]["url"] == f"http://host.docker.internal:{model['port']}"
    assert "no model is simulated" in simulator


@contextmanager
def server_of_this_machine(directory: Path, address: str, model: Json) -> Iterator[None]:
    """A simulator outside of the containers, in place of a person's own llama.cpp."""
    settings = {
        "simulator": {"host": address, "port": free_port()},
        "models": [model],
        "log": {"dir": str(directory)},
    }
    path = directory / "served.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "services.simulator"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "ORCH_CONFIG": str(path)})
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


_KILL = """
import os, pathlib
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    words = (entry / "cmdline").read_bytes().split(b"\\0")
    if b"services.router" in words and entry.name != "1":
        os.kill(int(entry.name), 9)
"""
"""Not process 1, which passes signals on: the router itself, as the kernel would that runs out of memory."""
