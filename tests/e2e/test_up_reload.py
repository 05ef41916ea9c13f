"""``make up`` follows the file that it was started with, and its services follow what it makes of that."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import config
from tests.kit.configs import free_ports, simulated_model
from tests.kit.up import Starter, Up
from tests.kit.waiting import wait_until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for up in starter.started:
        if up.process.poll() is None:
            up.process.terminate()
            up.process.wait(20)


async def test_a_changed_file_reaches_the_services_and_moved_ports_stay_moved(
    start: Starter, tmp_path: Path
) -> None:
    """alpha's port is another program's, so it was moved; a change of the file must not move it again."""
    control, taken, second = free_ports(3)
    with socket.create_server(("127.0.0.1", taken)):
        alpha, beta = simulated_model("alpha", taken), simulated_model("beta", second)
        path = tmp_path / "mine.yaml"
        _write(path, simulator={"port": control, "load_s": 0}, models=[alpha])
        up = start.real(ORCH_CONFIG=str(path), ORCH_JOBS__PRIORITY="7")
        await up.ready()
        moved = _ports(up)["alpha"]
        assert moved != taken

        changed = {
            "simulator": {"port": control, "load_s": 3},
            "models": [alpha, beta],
            "queue": {"bound": 5},
        }
        _write(path, **changed)
        await wait_until(lambda: _ports(up) == {"alpha": moved, "beta": second}, "beta is registered")
        assert [_answers(up, name) for name in ("alpha", "beta")] == ["succeeded"] * 2
        assert len(up.lines("simulator.load_s: needs a restart of simulator")) == 1
        effective = config.load({"ORCH_CONFIG": str(up.directory / "data/effective.yaml")})
        assert (effective.queue.bound, effective.simulator.load_s, effective.jobs.priority) == (5, 0, 7)

        _write(path, **changed, api={"prot": 1})
        await wait_until(lambda: up.lines("so nothing changes"), "up says that the file is wrong")
        (line,) = up.lines("so nothing changes")
        assert f"{path}: unknown key 'api.prot': did you mean 'port'?" in line

        _write(path, simulator={"port": control}, models=[beta, {**alpha, "port": up.api_port}])
        await wait_until(lambda: len(up.lines("so nothing changes")) == 2, "one port twice is wrong, too")
        assert _ports(up) == {"alpha": moved, "beta": second}

        path.unlink()
        os.mkfifo(path)
        await wait_until(lambda: up.lines("is no regular file"), "a pipe is not waited for")
        up.process.terminate()
        assert up.process.wait(30) == 0


def _write(path: Path, **sections: Any) -> None:
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(sections), encoding="utf-8")
    new.replace(path)


def _ports(up: Up) -> dict[str, int]:
    models = _call(up, "GET", "/v1/gpu/models")["models"]
    return {model["name"]: model["port"] for model in models}


def _answers(up: Up, model: str) -> str:
    return str(_call(up, "POST", "/v1/jobs?wait=20", {"prompt": "hi", "model": model})["state"])


def _call(up: Up, method: str, path: str, body: Any = None) -> Any:
    connection = HTTPConnection("127.0.0.1", up.api_port, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
