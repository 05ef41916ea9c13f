"""``python -m services.simulator``: starts, says what it is, stops at once, and names a taken port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from shared.backends.completion import complete
from shared.backends.errors import Interrupted
from shared.backends.http import HttpClient
from tests.kit.backends import call
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.stopwatch import Stopwatch
from tests.kit.waiting import wait_until


@asynccontextmanager
async def simulator(config: Mapping[str, Any], directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, with its output piped."""
    path = directory / "config.yaml"
    path.write_text(json.dumps({**config, "log": {"dir": str(directory / "logs")}}))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.simulator",
        env={**os.environ, "ORCH_CONFIG": str(path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def config(model_port: int, control_port: int) -> dict[str, Any]:
    model = simulated_model("alpha", model_port, tokens_per_second=100)
    return simulated_config([model], simulator={"port": control_port, "load_s": 0})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_and_stops_within_a_second_although_a_stream_is_open(
    tmp_path: Path, http: aiohttp.ClientSession, client: HttpClient, number: signal.Signals
) -> None:
    model_port, control_port = free_ports(2)
    async with simulator(config(model_port, control_port), tmp_path) as process:

        async def answers() -> bool:
            try:
                async with http.get(f"http://127.0.0.1:{control_port}/gpu") as response:
                    return response.status == 200
            except aiohttp.ClientConnectorError:
                return False

        await wait_until(answers, "the control port answers", timeout_s=60.0)
        begun = asyncio.Event()
        asked = call(f"http://127.0.0.1:{model_port}", {"prompt": "the queue", "max_tokens": 4000})
        stream = asyncio.create_task(complete(client, asked, begun.set))
        await begun.wait()

        with Stopwatch(process.pid) as told:
            process.send_signal(number)
            with pytest.raises(Interrupted):
                await stream
            output, _ = await process.communicate()
            ended_s = told.elapsed_s

    assert process.returncode == 0
    assert ended_s < 1.0
    words = output.decode()
    assert "SIMULATED GPU" in words
    assert f"http://127.0.0.1:{model_port} (simulated)" in words
    assert "SIMULATED GPU" in (tmp_path / "logs" / "simulator.log").read_text()


@pytest.mark.parametrize(
    ("taken", "setting"), [("model", "the port of model alpha"), ("control", "simulator.port")]
)
async def test_a_taken_port_is_one_clear_line_and_exit_status_1(
    tmp_path: Path, taken: str, setting: str
) -> None:
    ports = dict(zip(("model", "control"), free_ports(2), strict=True))
    with socket.create_server(("127.0.0.1", ports[taken])):
        async with simulator(config(ports["model"], ports["control"]), tmp_path) as process:
            output, _ = await asyncio.wait_for(process.communicate(), 60.0)

    (line,) = output.decode().splitlines()
    assert process.returncode == 1
    assert f"port {ports[taken]} ({setting}) is taken by another program" in line


async def test_a_wrong_setting_is_one_clear_line_and_exit_status_1(tmp_path: Path) -> None:
    async with simulator({"simulator": {"prot": 1}}, tmp_path) as process:
        output, _ = await asyncio.wait_for(process.communicate(), 60.0)

    (line,) = output.decode().splitlines()
    assert process.returncode == 1
    assert "did you mean 'port'?" in line


@pytest.mark.parametrize("chosen", [None, "0.0.0.0"])
async def test_it_listens_on_loopback_unless_told_otherwise(tmp_path: Path, chosen: str | None) -> None:
    model_port, control_port = free_ports(2)
    settings = config(model_port, control_port)
    if chosen:
        settings["simulator"]["host"] = chosen
    async with simulator(settings, tmp_path) as process:

        def listening() -> set[tuple[str, int]]:
            found = psutil.Process(process.pid).net_connections("tcp")
            return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}

        addresses = await wait_until(
            lambda: found if len(found := listening()) == 2 else None, "both ports listen", timeout_s=60.0
        )

    assert addresses == {(chosen or "127.0.0.1", model_port), (chosen or "127.0.0.1", control_port)}


@pytest.mark.parametrize("host", ["192.0.2.1", "::1"])
async def test_an_address_that_it_cannot_have_is_one_clear_line(tmp_path: Path, host: str) -> None:
    settings = config(*free_ports(2))
    settings["simulator"]["host"] = host
    async with simulator(settings, tmp_path) as process:
        output, _ = await asyncio.wait_for(process.communicate(), 60.0)

    (line,) = output.decode().splitlines()
    assert process.returncode == 1
    assert f"simulator.host = '{host}'" in line
    assert "an IPv4 address of this machine" in line
