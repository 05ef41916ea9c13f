"""``gpu-orchestrator redis`` in the place of redis-cli: the same answers, on a terminal and in a pipe."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE

import pytest

from shared.errors import ConfigError, StoreUnavailable
from shared.store import raw
from shared.store.server import EmbeddedRedis
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.waiting import wait_until

CLI = [sys.executable, "-m", "services.cli", "redis"]


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("reply", "terminal", "pipe"),
    [
        (raw.Status(b"OK"), "OK", b"OK"),
        (raw.Failure(b"ERR no"), "(error) ERR no", b"ERR no"),
        (7, "(integer) 7", b"7"),
        (None, "(nil)", b""),
        ([], "(empty array)", b""),
        (b'say "hi"\n\x00\xc3\\', r'"say \"hi\"\n\x00\xc3\\"', b'say "hi"\n\x00\xc3\\'),
        ([b"a", [b"b", 1]], '1) "a"\n2) 1) "b"\n   2) (integer) 1', b"a\nb\n1"),
        ([[[b"x"]]], '1) 1) 1) "x"', b"x"),
        (
            [b"e"] * 9 + [[b"x", b"y"]],
            "".join(f' {number}) "e"\n' for number in range(1, 10)) + '10) 1) "x"\n    2) "y"',
            b"e\n" * 9 + b"x\ny",
        ),
    ],
)
def test_replies_look_as_redis_cli_prints_them(reply: raw.Reply, terminal: str, pipe: bytes) -> None:
    assert raw.quoted(reply) == terminal
    assert raw.plain(reply) == pipe


def test_a_text_of_lines_is_shown_as_it_is_also_on_a_terminal() -> None:
    assert raw.shown(b"# Server\r\na:1\r\n", ["info", "server"], terminal=True) == b"# Server\r\na:1"
    assert raw.shown(b"id=1\n", ["CLIENT", "list"], terminal=True) == b"id=1"
    assert raw.shown(b"id=1\n", ["GET", "list"], terminal=True) == b'"id=1\\n"'


def test_replies_keep_their_kinds(redis_url: str) -> None:
    assert redis_reply(redis_url, "SET", "k", "OK") == raw.Status(b"OK")
    assert redis_reply(redis_url, "GET", "k") == b"OK"
    assert redis_reply(redis_url, "GET", "absent") is None
    assert redis_reply(redis_url, "STRLEN", "k") == 2
    assert redis_reply(redis_url, "SET", "big", "é" * 200_000) == raw.Status(b"OK")
    assert redis_reply(redis_url, "GET", "big") == ("é" * 200_000).encode()
    (failure,) = raw.replies(redis_url, ["INCR", "k"])
    assert failure == raw.Failure(b"ERR value is not an integer or out of range")


def test_a_password_and_a_database_in_the_url_are_used(redis_server: EmbeddedRedis, redis_url: str) -> None:
    redis_reply(redis_url, "ACL", "SETUSER", "reader", "on", ">pass word", "~*", "+@all")
    try:
        inner = f"redis://reader:pass%20word@127.0.0.1:{redis_server.port}/3"
        redis_reply(inner, "SET", "k", "v")
        assert redis_reply(redis_url, "DBSIZE") == 0
        assert redis_reply(inner, "GET", "k") == b"v"
        with pytest.raises(StoreUnavailable, match="WRONGPASS"):
            redis_reply(inner.replace("pass", "fail"), "PING")
    finally:
        redis_reply(redis_url, "ACL", "DELUSER", "reader")


def test_an_unreachable_or_unusable_url_is_said() -> None:
    port = free_port()
    with pytest.raises(StoreUnavailable, match=rf"no Redis at 127\.0\.0\.1:{port}: Connection refused"):
        redis_reply(f"redis://127.0.0.1:{port}", "PING")
    with pytest.raises(ConfigError, match=r"redis\.url: .*redis://"):
        redis_reply("http://127.0.0.1", "PING")


def test_a_readme_line_for_redis_cli_can_be_run(redis_server: EmbeddedRedis, redis_url: str) -> None:
    entry = redis_reply(redis_url, "XADD", "orch:decisions", "*", "v", "1", "reason", "a b")
    assert isinstance(entry, bytes)
    shown = cli("-p", str(redis_server.port), "XREVRANGE", "orch:decisions", "+", "-", "COUNT", "3")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"{entry.decode()}\nv\n1\nreason\na b\n"


def test_a_terminal_gets_the_numbered_form(redis_server: EmbeddedRedis, redis_url: str) -> None:
    redis_reply(redis_url, "RPUSH", "list", "one", "-2")
    controller, terminal = pty.openpty()
    try:
        words = ["-p", str(redis_server.port), "LRANGE", "list", "0", "-1"]
        subprocess.run([*CLI, *words], stdout=terminal, timeout=20, check=True)
        assert os.read(controller, 1000) == b'1) "one"\r\n2) "-2"\r\n'
    finally:
        os.close(terminal)
        os.close(controller)


def test_an_error_is_one_line_and_exit_status_1(redis_server: EmbeddedRedis) -> None:
    refused = cli("--url", redis_server.url, "NONSENSE")
    assert refused.returncode == 1
    assert refused.stdout.startswith("ERR unknown command 'NONSENSE'")
    unreachable = cli("-p", str(free_port()), "PING")
    assert (unreachable.returncode, unreachable.stdout) == (1, "")
    assert len(unreachable.stderr.splitlines()) == 1


async def test_a_blocking_read_waits_for_the_entry(redis_server: EmbeddedRedis, redis_url: str) -> None:
    words = ["-p", str(redis_server.port), "XREAD", "BLOCK", "0", "STREAMS", "orch:jobs:events", "$"]
    reader = await asyncio.create_subprocess_exec(*CLI, *words, stdout=PIPE)
    await wait_until(lambda: b"cmd=xread" in _clients(redis_url), "the reader waits")
    redis_reply(redis_url, "XADD", "orch:jobs:events", "7-1", "type", "job.queued")
    shown, _ = await asyncio.wait_for(reader.communicate(), 30)
    assert shown == b"orch:jobs:events\n7-1\ntype\njob.queued\n"


async def test_ctrl_c_ends_a_blocking_read_quietly(redis_server: EmbeddedRedis, redis_url: str) -> None:
    words = ["-p", str(redis_server.port), "XREAD", "BLOCK", "0", "STREAMS", "orch:jobs:events", "$"]
    reader = await asyncio.create_subprocess_exec(*CLI, *words, stdout=PIPE, stderr=PIPE)
    await wait_until(lambda: b"cmd=xread" in _clients(redis_url), "the reader waits")
    reader.send_signal(signal.SIGINT)
    shown, complaints = await asyncio.wait_for(reader.communicate(), 30)
    assert (shown, complaints, reader.returncode) == (b"", b"", 130)


def _clients(url: str) -> bytes:
    reply = redis_reply(url, "CLIENT", "LIST")
    assert isinstance(reply, bytes)
    return reply
