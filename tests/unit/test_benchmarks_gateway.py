"""The gateway benchmark runs, counts what it says it counts, and judges its aims by the figures."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway_parts.figures import Results, Sample, aims, p50, rate
from benchmarks.gateway_parts.load import QUICK, Load, LoadFailed, Measure, build, measured
from benchmarks.gateway_parts.processes import Bench, Cores
from shared.process import ChildProcess
from tests.kit.fake_nvml import require_compiler

ROOT = Path(__file__).resolve().parents[2]
_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_BRIEF = Measure("brief", 2, warm_up_s=0.05, seconds=0.3)
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[int]:
    """A server that answers every request so, on the port given."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
                await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def bench_at(directory: Path) -> Bench:
    """As the benchmark has it, with a stub that is never started."""
    stub = ChildProcess("stub", ["true"], directory / "stub.out")
    return Bench(directory, directory, Cores(), stub, 0, build(directory, "load"))


async def loaded(directory: Path, answer: Answer) -> Load:
    async with served(answer) as port:
        return await asyncio.to_thread(measured, bench_at(directory), port, _BRIEF)


def quick_run(directory: Path, only: str) -> tuple[str, dict[str, Any]]:
    """What a quick run printed and the samples of its one round; it must leave nothing behind."""
    require_compiler()
    path = directory / "samples.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway", "--quick", "--only", only, "--json", str(path)],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(directory)}, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [one.name for one in directory.iterdir()] == [path.name]
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if str(directory) in words_of(one)]
    (samples,) = json.loads(path.read_text())["rounds"]
    return done.stdout, samples


def words_of(command_line: Path) -> str:
    try:
        return command_line.read_bytes().decode(errors="replace")
    except OSError:
        return ""  # ended since it was listed


def test_a_quick_run_measures_the_stub_and_leaves_nothing_running(tmp_path: Path) -> None:
    shown, samples = quick_run(tmp_path, "direct")
    assert "| direct |" in shown
    assert list(samples) == [measure.name for measure in QUICK]
    for measure in QUICK:
        found: dict[str, Any] = samples[measure.name]["direct"]
        assert found["errors"] == 0
        assert found["answered"] > 0
        paced_ms = measure.pace_us / 1000
        assert found["first_p50"] >= paced_ms, "no token can come before its time"
        assert found["p50"] >= paced_ms * measure.chunks
        if paced_ms:
            # What was due shortly before the window may arrive in it, on a machine that was busy.
            assert 0 < found["tokens_per_s"] <= 2 * measure.in_flight * 1000 / paced_ms


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_our_own_stack_is_measured_by_process(tmp_path: Path) -> None:
    shown, samples = quick_run(tmp_path, "us")
    assert "| aims: us (llama_cpp) |" in shown
    for measure in QUICK:
        assert samples[measure.name]["us"]["errors"] == 0
    answers = samples["json_16"]["us"]
    assert answers["answered"] > 0
    assert set(answers["cpu_s"]) == {"redis", "monitor", "router", "api"}
    assert answers["cpu_s"]["api"] > 0


async def test_tokens_are_counted_however_the_answer_is_cut(tmp_path: Path) -> None:
    require_compiler()

    async def answer(writer: asyncio.StreamWriter) -> None:
        pieces = (
            _HEAD[:20],
            _HEAD[20:] + b"1",
            b"5\r\ndata: Qword QQwo",
            b"rd Qw\r\n5\r\nord Q\r",
            b"\n0\r\n\r\n",
        )
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    load = await loaded(tmp_path, answer)
    assert load.errors == 0
    assert load.answered > 0
    # Three in each answer; only those under way at the edges of the window can make a difference.
    assert load.tokens_per_s == pytest.approx(3 * load.per_s, abs=3 * 2 * _BRIEF.in_flight / _BRIEF.seconds)


async def test_answers_that_end_with_their_connection_count(tmp_path: Path) -> None:
    require_compiler()

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nQword")
        await writer.drain()
        writer.close()

    load = await loaded(tmp_path, answer)
    assert (load.errors, load.answered > 1) == (0, True)


async def test_a_contestant_that_only_refuses_fails_with_its_own_words(tmp_path: Path) -> None:
    require_compiler()

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\nno model")
        await writer.drain()

    with pytest.raises(LoadFailed, match=r"503 Service Unavailable.*no model"):
        await loaded(tmp_path, answer)


def sample(
    *, ms: float = 1.0, per_s: float = 1.0, first_ms: float = 1.0, tokens_per_s: float = 1.0
) -> Sample:
    load = Load(100, 0, per_s, tokens_per_s, ms, ms, first_ms, first_ms, 0.1, 1.0)
    return Sample(load, {"api": 0.2, "redis": 0.1})


def results(rounds: Sequence[Mapping[str, Mapping[str, Sample]]]) -> Results:
    return Results({"direct": "direct", "us": "us"}, rounds, {})


def test_what_is_added_is_taken_within_each_round() -> None:
    """A slow hour of the machine must not look like a slow contestant."""
    pairs = [(1.0, 1.5), (10.0, 10.5), (3.0, 3.4)]
    found = results([{"json_1": {"direct": sample(ms=direct), "us": sample(ms=us)}} for direct, us in pairs])
    assert found.added("json_1", "us", p50) == pytest.approx(0.5)
    assert found.figure("json_1", "us", p50) == pytest.approx(3.4)
    assert found.added("json_1", "litellm", p50) is None


def test_ratios_are_taken_within_each_round() -> None:
    """A machine that is twice as slow for a round and half must not make one contestant the slower."""
    speeds = [(1.0, 2.0), (2.0, 4.0), (4.0, 1.0)]
    found = results(
        [
            {
                "json_1": {"direct": sample(ms=0.0), "us": sample(ms=us), "litellm": sample(ms=10 * us)},
                "json_16": {"us": sample(per_s=8 * theirs), "litellm": sample(per_s=theirs)},
            }
            for us, theirs in speeds
        ]
    )
    assert found.added_against("json_1", "litellm", "us", p50) == pytest.approx(10.0)
    assert found.against("json_16", "us", "litellm", rate) == pytest.approx(8.0)
    assert found.against("json_16", "us", "nginx", rate) is None
    assert found.added_against("json_16", "us", "litellm", p50) is None


def test_cpu_is_told_per_answer_and_by_process() -> None:
    found = results([{"json_16": {"us": sample()}}])
    assert found.cpu_ms("us") == {"api": pytest.approx(2.0), "redis": pytest.approx(1.0)}
    assert found.cpu_ms("nginx") == {}


def test_aims_are_met_missed_or_not_known_by_what_was_measured() -> None:
    one = {
        "json_1": {"direct": sample(ms=1.0), "us": sample(ms=3.0), "litellm": sample(ms=21.0)},
        "json_16": {"us": sample(per_s=900.0), "litellm": sample(per_s=60.0)},
        "stream_1": {"direct": sample(first_ms=10.0), "us": sample(first_ms=13.5)},
        "stream_16": {"direct": sample(first_ms=10.0), "us": sample(first_ms=17.0)},
        "chunks_32": {"us": sample(tokens_per_s=20_000.0)},
    }
    assert [(aim.measured, aim.met) for aim in aims(results([one]), "us")] == [
        ("/ 10", True),
        ("/ 10", False),
        ("15 x", True),
        ("15 x", True),
        ("3.50 ms", False),
        ("7.00 ms", True),
        ("-", None),
    ]
