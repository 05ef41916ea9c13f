"""The command line against a running stack, in a pipe, on a terminal and as JSON."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from asyncio.subprocess import PIPE

import pytest

from tests.kit.cli import PROGRAM, Commands, environment
from tests.kit.cli_stack import Cli
from tests.kit.redis_fixture import free_port
from tests.kit.simulation import Simulation
from tests.kit.stack import Stack
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_BOXES = re.compile("[\N{BOX DRAWINGS LIGHT HORIZONTAL}-\N{BOX DRAWINGS HEAVY LEFT AND LIGHT RIGHT}]")
_ESCAPE = "\x1b["
_READING = (
    ("jobs",),
    ("status",),
    ("decisions", "-n", "2"),
    ("models",),
    ("models", "rank", "--agent-type", "Chat"),
    ("forecast", "--hours", "2"),
    ("rebalance",),
)


@pytest.mark.parametrize("words", _READING, ids=" ".join)
async def test_a_command_is_plain_in_a_pipe_drawn_on_a_terminal_and_one_document_as_json(
    cli: Cli, words: tuple[str, ...]
) -> None:
    plain, drawn, document = await asyncio.gather(cli(*words), cli.terminal(*words), cli(*words, "--json"))
    assert (plain.code, drawn.code, document.code) == (0, 0, 0)
    assert plain.err == document.err == ""
    assert plain.out.strip()
    assert _ESCAPE not in plain.out
    assert not _BOXES.search(plain.out)
    assert all(line == line.rstrip() for line in plain.out.splitlines())
    assert _ESCAPE in drawn.out
    assert _BOXES.search(drawn.out)
    assert isinstance(document.document, dict)
    assert len(document.out.splitlines()) == 1


async def test_a_job_is_handed_in_by_its_id_and_read_again(cli: Cli) -> None:
    handed_in = await cli("submit", "Say hello.", "--agent-type", "Chat", "--max-tokens", "4")
    assert (handed_in.code, handed_in.err) == (0, "")
    job_id = handed_in.out.strip()
    followed, read, document = await asyncio.gather(
        cli("job", job_id, "--follow"), cli.terminal("job", job_id), cli("job", job_id, "--json")
    )
    assert followed.code == 0
    *events, text = followed.out.splitlines()
    assert [line.split()[1] for line in events] == ["job.queued", "job.started", "job.succeeded"]
    assert text.startswith("[simulated alpha]")
    assert job_id in read.out
    assert document.document["job_id"] == job_id


async def test_an_answer_is_waited_for_and_printed_alone(cli: Cli) -> None:
    words = ("submit", "-", "--model", "alpha", "--max-tokens", "4", "--wait")
    plain, drawn, document = await asyncio.gather(
        cli(*words, stdin="Grüß Gott".encode()),
        cli.terminal(*words[:1], "hi", *words[2:]),
        cli(*words, "--json", stdin=b"x"),
    )
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.startswith("[simulated alpha]")
    assert len(plain.out.splitlines()) == 1
    assert drawn.code == 0
    assert "4 tokens" in drawn.out
    assert (document.code, document.document["state"]) == (0, "succeeded")


async def test_a_chat_is_sent_as_messages(cli: Cli, cli_stack: Stack) -> None:
    sent = await cli("submit", "hi", "--system", "Be brief.", "--model", "alpha", "--json", "--wait")
    request = json.loads(
        str(await cli_stack.redis.get(cli_stack.keys.of("request", sent.document["job_id"])))
    )
    assert request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


async def test_a_job_that_fails_ends_with_1_and_one_line(cli: Cli, cli_stack: Stack) -> None:
    await Simulation(cli_stack).fault("alpha", kind="status", status=400, times=2)
    words = ("submit", "hi", "--model", "alpha", "--wait")
    plain, document = await asyncio.gather(cli(*words), cli(*words, "--json"))
    assert (plain.code, plain.out) == (1, "")
    (line,) = plain.err.splitlines()
    assert "is failed: backend_rejected" in line
    assert (document.code, document.document["state"]) == (1, "failed")


async def test_a_wait_that_is_too_short_ends_with_4_and_the_job_goes_on_until_it_is_cancelled(
    cli: Cli, cli_stack: Stack
) -> None:
    waited = await cli("submit", "hi", "--model", "slow", "--timeout", "0.5")
    assert waited.code == 4
    (line,) = waited.err.splitlines()
    found = re.search(r"job (\w+) has not ended", line)
    assert found
    assert (await cli_stack.job(found[1]))["state"] == "running"

    follower = await cli.start("job", found[1], "--follow", "--json")
    cancelled = await cli("cancel", found[1])
    out, err = await asyncio.wait_for(follower.communicate(), 30)

    assert cancelled.code == 0
    assert "asked to stop it" in cancelled.out
    assert follower.returncode == 1
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["type"] for event in events] == [
        "job.queued", "job.started", "job.cancel_requested", "job.cancelled",
    ]  # fmt: skip
    assert b"is cancelled" in err


async def test_following_goes_on_where_the_api_was_away(cli: Cli, cli_stack: Stack) -> None:
    job_id = await cli_stack.submit(prompt="hi", model="slow")
    follower = await cli.start("job", job_id, "--follow", "--json")
    assert follower.stdout is not None
    assert json.loads(await follower.stdout.readline())["type"] == "job.queued"
    assert json.loads(await follower.stdout.readline())["type"] == "job.started"
    cli_stack.kill("api")
    cli_stack.start("api")
    await cli_stack.ready()
    await cli("cancel", job_id)
    out, err = await asyncio.wait_for(follower.communicate(), 30)
    assert [json.loads(line)["type"] for line in out.splitlines()] == [
        "job.cancel_requested",
        "job.cancelled",
    ]
    assert follower.returncode == 1, err


async def test_decisions_are_followed_until_ctrl_c(cli: Cli, cli_stack: Stack) -> None:
    follower = await cli.start("decisions", "--follow", "-n", "1", "--json")
    assert follower.stdout is not None
    last = json.loads(await follower.stdout.readline())
    assert last["reason"]
    assert isinstance(last["scores"], dict)
    job_id = await cli_stack.submit(prompt="hi", model="alpha", max_tokens=4)
    assert json.loads(await follower.stdout.readline())["job_id"] == job_id
    follower.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(follower.communicate(), 60)
    assert (out, err, follower.returncode) == (b"", b"", 130)


async def test_status_is_watched_until_ctrl_c(cli: Cli) -> None:
    watcher = await cli.start("status", "--watch", "--interval", "0.1", "--json")
    assert watcher.stdout is not None
    for _ in range(2):
        assert "alpha" in json.loads(await watcher.stdout.readline())["models"]
    watcher.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(watcher.communicate(), 60)
    assert (err, watcher.returncode) == (b"", 130)


async def test_a_model_is_measured_with_a_bar_on_a_terminal_and_a_table_in_a_pipe(cli: Cli) -> None:
    lasting = ("benchmark", "alpha", "--duration", "1.5", "--max-tokens", "8")
    words = (*lasting, "--count", "3")
    plain = await cli(*words)
    drawn = await cli.terminal(*lasting)
    document = await cli(*words, "--json")
    assert (plain.code, drawn.code, document.code) == (0, 0, 0)
    assert "3 of 3 succeeded" in plain.out
    assert re.search(r"^decode, tokens/s +\d", plain.out, re.MULTILINE)
    assert "measuring alpha" in drawn.out
    assert "measuring" not in plain.out + plain.err
    assert document.document["succeeded"] == 3


async def test_a_benchmark_that_is_interrupted_is_cancelled(cli: Cli, cli_stack: Stack) -> None:
    measuring = await cli.start("benchmark", "slow", "--duration", "200")

    async def runs() -> bool:
        return await cli_stack.in_flight("slow") == 1

    await wait_until(runs, "the benchmark's first request runs")
    measuring.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(measuring.communicate(), 60)
    assert (err, measuring.returncode) == (b"", 130)

    async def idle() -> bool:
        return await cli_stack.jobs.counts() == (0, 0)

    await wait_until(idle, "its request is cancelled and no other follows")


async def test_a_model_is_registered_and_removed_but_none_of_the_file(cli: Cli, cli_stack: Stack) -> None:
    port = str(cli_stack.settings.models[0].port)
    added = await cli("models", "add", "extra", "--port", port, "-a", "Extra", "-a", "More", "--json")
    assert (added.code, added.err) == (0, "")
    assert added.document["agent_types"] == ["Extra", "More"]
    assert re.search(r"^extra ", (await cli("models")).out, re.MULTILINE)
    removed, refused = await asyncio.gather(
        cli("models", "remove", "extra"), cli("models", "remove", "alpha")
    )
    assert removed.code == 0
    assert refused.code == 1
    assert "comes from the configuration" in refused.err


async def test_what_the_api_refuses_is_one_line_and_1(cli: Cli, cli_stack: Stack) -> None:
    ended = await cli_stack.ended(await cli_stack.submit(prompt="hi", model="alpha", max_tokens=4))
    refusals = (
        (("rebalance", "--execute"), "no launcher"),
        (("submit", "hi", "--agent-type", "Nope"), "known: Chat, Slow"),
        (("job", "nosuch"), "no job 'nosuch'"),
        (("cancel", str(ended["job_id"])), "has already ended"),
        (("benchmark", "nosuch"), "known: alpha, slow"),
    )
    for command, words in refusals:
        refused = await cli(*command)
        assert (refused.code, refused.out) == (1, "")
        (line,) = refused.err.splitlines()
        assert words in line


async def test_a_text_that_is_too_long_is_refused_by_its_limit(cli: Cli, cli_stack: Stack) -> None:
    limit = cli_stack.settings.api.max_body_bytes
    refused = await cli("submit", "-", stdin=b"x" * limit)
    assert (refused.code, refused.out) == (1, "")
    assert f"api.max_body_bytes = {limit}" in refused.err


async def test_a_reader_that_has_enough_is_no_error(cli: Cli) -> None:
    script = f'set -o pipefail; "{PROGRAM[0]}" -m services.cli decisions -n 500 --json | head -c 5'
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, stdout=PIPE, stderr=PIPE, env=cli.environ
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (out, err, process.returncode) == (b'{"dec', b"", 0)


async def test_no_color_means_no_escape_sequence_also_on_a_terminal(cli: Cli) -> None:
    shown, helped = await asyncio.gather(
        cli.terminal("status", NO_COLOR="1"), cli.terminal("status", "--help", NO_COLOR="1")
    )
    assert _BOXES.search(shown.out)
    assert _ESCAPE not in shown.out + helped.out


async def test_a_narrow_terminal_loses_columns_instead_of_its_form(cli: Cli) -> None:
    wide, narrow = await asyncio.gather(cli.terminal("models"), cli.terminal("models", columns=60))
    assert "BACKEND" in wide.out
    assert "BACKEND" not in narrow.out
    assert any(
        "alpha" in line and "resident" in line and "host/0" in line for line in narrow.out.splitlines()
    )


async def test_a_shell_completes_commands_models_and_jobs(
    cli: Cli, cli_stack: Stack, commands: Commands
) -> None:
    async def completed(words: str) -> list[str]:
        environ = {
            **cli.environ,
            "_GPU_ORCHESTRATOR_COMPLETE": "complete_bash",
            "COMP_WORDS": f"gpu-orchestrator {words}",
            "COMP_CWORD": str(len(words.split(" "))),
        }
        return (await asyncio.to_thread(commands.piped, environ=environ)).out.split()

    assert await completed("jo") == ["jobs", "job"]
    assert await completed("benchmark ") == ["alpha", "slow"]
    assert (await cli_stack.submit(prompt="hi", model="alpha", max_tokens=4)) in await completed("job ")


async def test_a_url_of_the_command_line_goes_before_the_environment_and_the_settings(
    cli: Cli, cli_stack: Stack, commands: Commands
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    environ = environment(ORCH_API_URL=nowhere)
    named, unnamed = await asyncio.gather(
        asyncio.to_thread(commands.piped, "jobs", "--url", f"{cli_stack.api}/", environ=environ),
        asyncio.to_thread(commands.piped, "jobs", environ={**cli.environ, "ORCH_API_URL": nowhere}),
    )
    assert named.code == 0
    assert unnamed.code == 3
    assert nowhere in unnamed.err
