"""The supervisor behind ``make up``: what starts, what dies, what stops, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from services.up.app import write_effective
from shared import config
from shared.store.server import EmbeddedRedis
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.up import Starter, running
from tests.kit.waiting import wait_until

HEALTHY = ("monitor=idle", "router=idle", "api=ready")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for up in starter.started:
        if up.process.poll() is None:
            up.process.terminate()
            up.process.wait(60)


async def test_what_runs_is_listed_with_its_address_and_log_and_said_to_be_simulated(start: Starter) -> None:
    up = start("simulator=idle", *HEALTHY)
    await up.ready()
    shown = up.output
    assert f"is ready: http://127.0.0.1:{up.api_port}" in shown
    assert "SIMULATED" in shown
    for name in ("simulator", "monitor", "router", "api"):
        (line,) = up.lines(f"address of the {name}")
        assert f"data/logs/{name}.out" in line
        assert any(f"pid {pid} " in line for pid in up.children())
    assert up.lines(f"127.0.0.1:{up.redis_port} (")
    assert "bin/gpu-orchestrator" in shown
    assert "XREVRANGE orch:decisions + - COUNT 3" in shown
    assert "\033" not in shown


async def test_children_read_the_settings_from_one_file_and_from_nowhere_else(start: Starter) -> None:
    up = start(*HEALTHY, ORCH_API__MAX_WAIT_S="77", ORCH_HOST_NAME="box", ORCH_INSTANCE="one")
    await up.ready()
    assert (
        "router runs with ORCH_CONFIG ORCH_HOST_NAME ORCH_REDIS__URL\n"
        in (up.directory / "data/logs/router.out").read_text()
    )
    path = up.directory / "data/effective.yaml"
    read = config.load({"ORCH_CONFIG": str(path)})
    assert read.api.max_wait_s == 77
    assert read.redis.url is None, "anybody may use it once this stack is gone"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.slow
async def test_the_real_services_become_ready_do_a_job_and_stop(start: Starter) -> None:
    model = {"name": "small", "port": free_port(), "simulated": True, "agent_types": ["Chat"], "slots": 2}
    up = start.real(
        ORCH_MODELS=json.dumps([model]),
        ORCH_SIMULATOR__PORT=str(free_port()),
        ORCH_SIMULATOR__LOAD_S="0",
        ORCH_SIMULATOR__SPEEDUP="20",
    )
    await up.ready()
    pids = up.children()
    api = HTTPConnection("127.0.0.1", up.api_port, timeout=30)
    with contextlib.closing(api):
        api.request("POST", "/v1/jobs?wait=20", json.dumps({"prompt": "Hi", "max_tokens": 8}))
        job = json.loads(api.getresponse().read())
    assert job["state"] == "succeeded", job
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert running(pids) == []
    assert "Traceback" not in "".join(log.read_text() for log in (up.directory / "data/logs").glob("*.out"))
    assert not up.lines("died"), up.output


async def test_a_dead_child_is_started_again_and_one_line_says_why(start: Starter) -> None:
    up = start("monitor=dies-once", "router=idle", "api=ready")
    await up.ready()
    log = up.directory / "data/logs/monitor.out"
    await wait_until(lambda: log.read_text().count("monitor runs") == 2, "the monitor runs again")
    (line,) = up.lines("monitor died")
    assert len(up.children()) == 4
    assert "exit status 1" in line
    assert "monitor cannot go on" in line
    assert "data/logs/monitor.out" in line
    assert "starting it again" in line


async def test_a_killed_redis_comes_back_with_its_data(start: Starter) -> None:
    up = start(*HEALTHY)
    await up.ready()
    url = f"redis://127.0.0.1:{up.redis_port}/0"
    redis_reply(url, "SET", "kept", "yes")
    before = up.redis_pid()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    await wait_until(lambda: up.redis_pid() not in (None, before), "another Redis answers")
    (line,) = up.lines("redis died")
    assert "killed by SIGKILL" in line
    assert redis_reply(url, "GET", "kept") == b"yes"


def test_a_child_that_keeps_dying_stops_everything(start: Starter) -> None:
    up = start("monitor=dies", "router=idle", "api=ready")
    assert up.process.wait(60) == 1
    last = up.output.splitlines()[-1]
    assert "monitor died (exit status 1): monitor cannot go on" in last
    assert "5 times in 30 s" in last
    assert up.stopped.count("router") == 1
    assert "Traceback" not in up.output


def test_what_is_not_ready_in_time_is_named(start: Starter) -> None:
    up = start("monitor=idle", "router=idle", "api=unready", ready_timeout_s=3.0)
    assert up.process.wait(60) == 1
    (line,) = up.lines("not ready after 3 s")
    assert '/readyz says 503: {"redis": "ok", "router": "none alive"}' in line


async def test_ctrl_c_stops_the_draining_ones_first_and_leaves_nothing(start: Starter) -> None:
    up = start("simulator=idle", *HEALTHY)
    await up.ready()
    pids = up.children()
    assert len(pids) == 5
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert running(pids) == []
    assert set(up.stopped[:2]) == {"api", "router"}
    assert set(up.stopped[2:]) == {"monitor", "simulator"}
    assert "ready to exit" in (up.directory / "data/logs/redis.out").read_text()


async def test_a_second_ctrl_c_kills_what_does_not_stop(start: Starter) -> None:
    up = start("monitor=idle", "router=stubborn", "api=ready")
    await up.ready()
    pids = up.children()
    up.process.send_signal(signal.SIGINT)
    await wait_until(lambda: up.stopped == ["api"], "the api has stopped")
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert running(pids) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
async def test_nothing_outlives_a_killed_supervisor(start: Starter) -> None:
    up = start("simulator=stubborn", *HEALTHY)
    await up.ready()
    pids = up.children()
    assert len(pids) == 5
    up.process.kill()
    up.process.wait()
    await wait_until(lambda: running(pids) == [], "every child has ended")


def test_a_taken_api_port_is_one_line_that_names_the_setting(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        up = start.real(ORCH_API__PORT=str(port))
        assert up.process.wait(60) == 1
    (line,) = up.output.splitlines()
    assert f"api.port {port} on 127.0.0.1 is taken" in line


def test_a_taken_redis_port_is_one_line_that_names_the_setting(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # Nothing simulated: that would say so in a line of its own wherever its usual ports are taken.
        real = json.dumps([{"name": "real", "port": port}])
        up = start(*HEALTHY, ORCH_REDIS__EMBEDDED_PORT=str(port), ORCH_MODELS=real, ORCH_GPU__SOURCE="none")
        assert up.process.wait(60) == 1
    (line,) = up.output.splitlines()
    assert f"redis.embedded_port {port}" in line


@pytest.mark.parametrize("external", [False, True])
async def test_a_second_up_in_the_directory_names_the_first_and_changes_nothing(
    start: Starter, tmp_path: Path, redis_url: str, external: bool
) -> None:
    up = start(*HEALTHY, ORCH_REDIS__URL=redis_url) if external else start(*HEALTHY)
    await up.ready()
    files = [path for path in (tmp_path / "data").rglob("*") if path.suffix in (".yaml", ".lock", ".log")]
    before = [path.read_bytes() for path in files]
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.up"),
        cwd=tmp_path,
        env={**os.environ, "ORCH_API__PORT": str(free_port()), "ORCH_REDIS__URL": redis_url},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        (line,) = (await asyncio.wait_for(second.communicate(), 60))[1].decode().splitlines()
    finally:
        with contextlib.suppress(ProcessLookupError):
            second.terminate()
    assert second.returncode == 1
    assert f"{tmp_path}/data is in use by another `make up` (pid {up.process.pid})" in line
    assert {path.name for path in files} == {"effective.yaml", "up.lock", "up.log"}
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    "path", ["data/effective.yaml", "data/redis/lock", "data/up.lock", "data/logs/router.out"]
)
def test_a_directory_in_a_files_place_is_one_line_that_names_it(
    start: Starter, tmp_path: Path, path: str
) -> None:
    (tmp_path / path).mkdir(parents=True)
    up = start(*HEALTHY)
    assert up.process.wait(60) == 1
    assert path in up.output.splitlines()[-1]
    assert "Traceback" not in up.output


@pytest.mark.parametrize("path", ["data", "data/redis"])
def test_a_file_in_a_directorys_place_is_one_line_that_names_it(
    start: Starter, tmp_path: Path, path: str
) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("in the way")
    up = start(*HEALTHY)
    assert up.process.wait(60) == 1
    assert path in up.output.splitlines()[-1]
    assert "Traceback" not in up.output


def test_one_port_for_redis_and_the_api_ends_up_before_anything_is_written(
    start: Starter, tmp_path: Path
) -> None:
    port = str(free_port())
    up = start.real(ORCH_API__PORT=port, ORCH_REDIS__EMBEDDED_PORT=port)
    assert up.process.wait(60) == 2
    (line,) = up.output.splitlines()
    assert f"redis.embedded_port and api.port are both {port}" in line
    assert not (tmp_path / "data").exists()


def test_wrong_settings_are_one_line_and_exit_status_2(start: Starter) -> None:
    up = start.real(ORCH_ROUTER__LEASE_S="soon")
    assert up.process.wait(60) == 2
    (line,) = up.output.splitlines()
    assert "router.lease_s = 'soon'" in line


def test_a_given_redis_that_does_not_answer_is_one_line_without_its_password(start: Starter) -> None:
    up = start.real(ORCH_REDIS__URL=f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert up.process.wait(60) == 1
    (line,) = up.output.splitlines()
    assert "redis.url redis://127.0.0.1:" in line
    assert "does not answer" in line
    assert "secret" not in line


def test_a_given_redis_that_evicts_is_refused(start: Starter, tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path / "other") as other:
        redis_reply(other.url, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        up = start.real(ORCH_REDIS__URL=other.url)
        assert up.process.wait(60) == 1
    assert "maxmemory-policy allkeys-lru" in up.output.splitlines()[-1]


async def test_a_given_redis_is_used_and_left_running(start: Starter, tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path / "other") as other:
        up = start(*HEALTHY, ORCH_REDIS__URL=other.url)
        await up.ready()
        assert len(up.children()) == 3
        up.process.terminate()
        assert up.process.wait(60) == 0
        assert redis_reply(other.url, "DBSIZE") == 0


def test_the_default_models_are_written_out_for_the_children(tmp_path: Path) -> None:
    settings = config.load({})
    path = write_effective(settings, tmp_path / "effective.yaml")
    read = config.load({"ORCH_CONFIG": str(path)})
    assert json.loads(read.model_dump_json(exclude={"models"})) == json.loads(
        settings.model_dump_json(exclude={"models"})
    )
    assert read.registrations == settings.registrations
    assert read.simulates
