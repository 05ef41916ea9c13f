"""The pipeline benchmark runs, counts the jobs that it says it counts, and judges its aims by the figures."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway_parts.load import build
from benchmarks.gateway_parts.processes import free_ports
from benchmarks.pipeline import SOURCES
from benchmarks.pipeline_parts.contestants import CONTESTANTS, REQUIREMENTS
from benchmarks.pipeline_parts.figures import OURS, Results, aims, rate
from benchmarks.pipeline_parts.measures import QUICK, Run, Sample
from shared.process import ChildProcess
from tests.kit.fake_nvml import require_compiler
from tests.kit.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_quick_run_takes_every_job_of_ours_to_its_end(tmp_path: Path) -> None:
    require_compiler()
    path = tmp_path / "samples.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline", "--quick", "--only", "us", "--json", str(path)],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
        timeout=140, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| us (llama_cpp) |" in done.stdout
    found = json.loads(path.read_text())
    assert (found["failures"], found["skipped"]) == ([], {})
    (samples,) = found["rounds"]
    assert set(samples) == {f"{measure.name} {workers}" for measure in QUICK for workers in (1, 2)}
    for cell, by_name in samples.items():
        ours = by_name["us"]
        assert ours["jobs"] == ours["accepted"] > 0, "what was accepted is what was recorded as done"
        assert (ours["errors"], ours["repeated"]) == (0, 0)
        assert 0 < ours["way_p50"] <= ours["way_p99"]
        assert set(ours["cpu_s"]) - {"router 2"} == {"redis", "monitor", "router", "api"}
        assert ("router 2" in ours["cpu_s"]) == cell.endswith(" 2")
    assert set(found["idle"]) == {"redis", "monitor", "router", "api"}
    assert all(cost["rss_mb"] > 1 for cost in found["idle"].values())
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "nothing is left behind"


def test_peers_are_those_whose_versions_are_pinned() -> None:
    pinned = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert pinned
    assert all(line.count("==") == 1 for line in pinned)
    labels = [one.label.replace(" ", "==") for name, one in CONTESTANTS.items() if name not in OURS]
    assert labels
    assert set(labels) <= set(pinned)


@contextmanager
def door(answer: bytes, *, asks: int, backend: int) -> Iterator[int]:
    """A door that answers every POST so, after asking the backend ``asks`` times for the job."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            while line := lines.readline():
                size = 0
                while line not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                    line = lines.readline()
                job = json.loads(lines.read(size))
                for _ in range(asks):
                    asked(backend, "POST", "/v1/completions", json.dumps({"prompt": job["prompt"]}))
                client.sendall(answer)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed: the test is over
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        # Closing alone does not wake who waits in accept.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join()


def asked(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
async def backend(tmp_path: Path) -> Any:
    """The port of the program that is clients and backend."""
    require_compiler()
    (port,) = free_ports(1)
    program = build(tmp_path, "jobs", SOURCES)
    process = ChildProcess("jobs", [str(program), str(port)], tmp_path / "jobs.out")
    process.launch()
    try:

        async def ready() -> bool:
            return process.last_lines() == ["ready"]

        await wait_until(ready, "the backend listens", timeout_s=30)
        yield port
    finally:
        process.stop()


def measured(backend: int, door: int, in_flight: int = 2, ms: int = 200) -> dict[str, Any]:
    query = f"door={door}&in_flight={in_flight}&ms={ms}&rest_ms=0&drain_ms=500"
    status, body = asked(backend, "GET", f"/measure?{query}")
    assert status == 200
    said: dict[str, Any] = json.loads(body)
    return said


_ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
_REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull"


async def test_a_job_counts_once_it_was_accepted_and_has_reached_the_backend(backend: int) -> None:
    with door(_ACCEPTED, asks=1, backend=backend) as port:
        said = measured(backend, port)
    assert said["posted"] == said["accepted"] == said["arrived"] > 2
    assert (said["errors"], said["repeated"], said["unfinished"], said["complaint"]) == (0, 0, 0, "")
    assert 0 < said["way_ms"][0] <= said["answer_ms"][1]
    assert said["first_post_ns"] < said["last_arrival_ns"]


async def test_a_job_that_reaches_the_backend_twice_is_told(backend: int) -> None:
    with door(_ACCEPTED, asks=2, backend=backend) as port:
        said = measured(backend, port)
    assert said["repeated"] == said["arrived"] > 0


async def test_a_job_that_never_arrives_stays_in_flight(backend: int) -> None:
    with door(_ACCEPTED, asks=0, backend=backend) as port:
        said = measured(backend, port)
    assert (said["accepted"], said["arrived"], said["unfinished"]) == (2, 0, 2)


async def test_a_door_that_refuses_is_quoted(backend: int) -> None:
    with door(_REFUSED, asks=0, backend=backend) as port:
        said = measured(backend, port)
    assert said["accepted"] == 0
    assert said["errors"] > 0
    assert "429 Too Many Requests" in said["complaint"]


def sample(per_s: float, p50_ms: float, p99_ms: float) -> Sample:
    run = Run(100, 100, 0, 0, 100 / per_s, p50_ms, p99_ms, 1.0, 2.0, 1.0)
    return Sample(run, {"api": 0.2, "redis": 0.1}, 0.0)


def results(cells: Mapping[tuple[str, int], Mapping[str, Sample]]) -> Results:
    return Results({"us": "us", "streaq": "streaq 7", "taskiq": "taskiq 1"}, [cells], {})


def test_we_are_put_beside_the_best_peer_of_each_figure() -> None:
    found = aims(
        results(
            {
                ("alone", 1): {"us": sample(50, 2.5, 9.0), "streaq": sample(50, 2.0, 4.5)},
                ("many", 1): {
                    "us": sample(500, 50, 90),
                    "streaq": sample(250, 80, 100),
                    "taskiq": sample(1000, 20, 180),
                },
            }
        )
    )
    judged = {aim.text: (aim.measured, aim.met) for aim in found}
    assert judged["jobs/s at 32 with 1 at least 400"] == ("500", True)
    assert judged["jobs/s at 32 with 1 at least the fastest peer's"] == ("0.50 x taskiq 1", False)
    assert judged["p99 at 32 with 1 at most the lowest peer's"] == ("0.90 x streaq 7", True)
    assert judged["p99 at 1, rested with 1 at most the lowest peer's"] == ("2.00 x streaq 7", False)
    assert judged["POST to backend p50 at 1, rested at most 3 ms"] == ("2.5 ms", True)
    assert judged["jobs/s at 32 with 2 at least 400"] == ("-", None)


def test_it_is_within_each_round_that_we_are_put_beside_a_peer() -> None:
    cell = ("many", 1)
    rounds = [
        {cell: {"us": sample(2 * theirs, 1, 1), "streaq": sample(theirs, 1, 1)}} for theirs in (100, 900, 300)
    ]
    rounds.append({cell: {"us": sample(5000, 1, 1)}})  # the other failed that time
    found = Results({"us": "us", "streaq": "streaq 7"}, rounds, {})
    assert found.against(cell, "us", "streaq", rate) == pytest.approx(2.0)
    assert found.against(cell, "us", "taskiq", rate) is None


def test_cpu_is_told_per_job_and_by_process() -> None:
    found = results({("many", 1): {"us": sample(500, 50, 90)}})
    assert found.cpu_ms(("many", 1), "us") == {"api": pytest.approx(2.0), "redis": pytest.approx(1.0)}
    assert found.cpu_ms(("many", 2), "us") == {}
