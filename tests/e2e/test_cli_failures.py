"""The command line where it cannot do what it is told: nothing there, the wrong thing there, wrong usage."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.kit.cli import Commands, environment, stand_in
from tests.kit.redis_fixture import free_port

_ASKING = (
    ("jobs",),
    ("job", "x"),
    ("job", "x", "--follow"),
    ("submit", "hi", "--wait"),
    ("cancel", "x"),
    ("status",),
    ("status", "--watch"),
    ("decisions",),
    ("decisions", "--follow"),
    ("models",),
    ("models", "add", "x", "--port", "1"),
    ("models", "remove", "x"),
    ("models", "rank"),
    ("benchmark", "x"),
    ("forecast",),
    ("rebalance",),
)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_is_one(commands: Commands, shell: str) -> None:
    ended = commands.piped(environ=environment(_GPU_ORCHESTRATOR_COMPLETE=f"source_{shell}"))
    assert ended.code == 0
    assert f"_GPU_ORCHESTRATOR_COMPLETE=complete_{shell}" in ended.out
    if shutil.which(shell):
        read = subprocess.run([shell, "-n"], input=ended.out, capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, "")


def test_with_the_stack_down_every_command_says_so_in_one_line(commands: Commands) -> None:
    api, redis = free_port(), free_port()
    environ = environment(ORCH_API__PORT=str(api), ORCH_REDIS__EMBEDDED_PORT=str(redis))
    for words in _ASKING:
        where = f"redis://127.0.0.1:{redis}" if words[0] == "decisions" else f"http://127.0.0.1:{api}"
        for run in (commands.piped, commands.on_terminal):
            ended = run(*words, environ=environ)
            assert ended.code == 3, (words, ended)
            (line,) = (ended.err or ended.out).splitlines()
            assert where in line
            assert "start it with `gpu-orchestrator up`" in line


def test_the_key_goes_to_the_api_and_nowhere_else(commands: Commands) -> None:
    problem = {"title": "No such key", "detail": "this key is revoked", "status": 401}
    with stand_in() as api:
        api.status, api.body = 401, json.dumps(problem).encode()
        environ = environment(ORCH_API_URL=api.url, ORCH_API_KEY="sk-very-secret")
        ended = commands.piped("jobs", environ=environ)
    assert api.asked == [("GET /v1/jobs?limit=20", "Bearer sk-very-secret")]
    assert ended.code == 1
    assert "this key is revoked (the key comes from ORCH_API_KEY)" in ended.err
    assert "very-secret" not in ended.out + ended.err
    broken = commands.piped("jobs", environ={**environ, "ORCH_API_KEY": "sk-very\nsecret"})
    assert broken.code == 2
    assert "ORCH_API_KEY holds characters" in broken.err
    assert "very" not in broken.err


def test_what_is_no_orchestrator_is_told_apart(commands: Commands) -> None:
    with stand_in() as other:
        other.content_type, other.body = "text/html", b"<html>Welcome</html>"
        ended = commands.piped("status", "--url", other.url, environ=environment())
    assert ended.code == 3
    assert f"what answers at {other.url} is no orchestrator" in ended.err


def test_a_name_that_no_host_can_have_is_one_line(commands: Commands) -> None:
    ended = commands.piped("jobs", "--url", "http://a..b:80", environ=environment())
    assert ended.code == 3
    (line,) = ended.err.splitlines()
    assert "no orchestrator answers at http://a..b:80" in line


def test_a_full_queue_and_an_absent_redis_have_their_own_codes(commands: Commands) -> None:
    codes: dict[int, int] = {}
    with stand_in() as api:
        for status in (429, 503):
            api.status, api.body = status, json.dumps({"detail": "not now"}).encode()
            ended = commands.piped("jobs", "--url", api.url, environ=environment())
            assert "not now" in ended.err
            codes[status] = ended.code
    assert codes == {429: 1, 503: 3}


def test_wrong_usage_ends_with_2_and_says_what_is_right(commands: Commands) -> None:
    wrong: tuple[tuple[tuple[str, ...], dict[str, Any], str], ...] = (
        (("jbs",), {}, "Did you mean 'jobs'"),
        (("jobs", "--state", "gone"), {}, "'succeeded'"),
        (("jobs", "--limit", "0"), {}, "greater than or equal to 1"),
        (("jobs", "--url", "127.0.0.1:8000"), {}, "no address such as http://127.0.0.1:8000"),
        (("jobs", "--url", "http://me:pw@host"), {}, "leave out user, password"),
        (("submit", "-"), {"stdin": b"\xff"}, "no UTF-8 text (from byte 0 on)"),
        (("redis",), {}, "say a command"),
        (("redis", "-p", "1", "-u", "redis://h", "PING"), {}, "not both"),
    )
    for words, more, said in wrong:
        ended = commands.piped(*words, environ=environment(), **more)
        assert (ended.code, ended.out) == (2, ""), words
        assert said in ended.err
        assert "pw" not in ended.err
