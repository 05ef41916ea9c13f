"""The nginx of docs/proxy.md in front of a real stack, and whose address the log names behind a proxy."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from loguru import logger

from shared.process import ChildProcess
from tests.kit.api_keys import bearer, made
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.gateway import desk
from tests.kit.redis_fixture import free_port
from tests.kit.stack import ROOT, Stack, running_stack
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until

NAME = "llm.example.org"
_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
_OPENSSL = shutil.which("openssl")
_SLOW = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 512}
_AROUND = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{block}
}}
"""


def _block(directory: Path, port: int, upstream: int) -> str:
    """What docs/proxy.md shows, at other places."""
    text = (ROOT / "docs" / "proxy.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    places = {
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/llm.example.org.pem": f"{directory}/cert.pem",
        "/etc/ssl/llm.example.org.key": f"{directory}/key.pem",
    }
    for shown, ours in places.items():
        assert block.count(shown) == 1, shown
        block = block.replace(shown, ours)
    return str(block)


@contextmanager
def _nginx(directory: Path, upstream: int) -> Iterator[str]:
    """A running nginx in front of a port; the URL."""
    if _NGINX is None or _OPENSSL is None:
        pytest.skip("nginx and openssl are not installed")
    port = free_port()
    pair = ("-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem"))
    subprocess.run(
        [
            _OPENSSL,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            f"/CN={NAME}",
            *pair,
        ],
        check=True,
        capture_output=True,
    )
    conf = directory / "nginx.conf"
    conf.write_text(_AROUND.format(directory=directory, block=_block(directory, port, upstream)))
    process = ChildProcess(
        "nginx", [_NGINX, "-p", str(directory), "-c", str(conf), "-e", "stderr"], directory / "nginx.out"
    )
    process.launch()
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        process.stop()


@asynccontextmanager
async def _stack(directory: Path, redis_url: str) -> AsyncIterator[Stack]:
    models = [simulated_model("slow", free_ports(1)[0], tokens_per_second=5.0)]
    api = {"port": free_port(), "allowed_hosts": [NAME], "trusted_proxies": ["127.0.0.1"]}
    config = simulated_config(models, api=api)
    async with running_stack(
        directory, redis_url, config, ("simulator", "monitor", "router", "api")
    ) as stack:
        yield stack


@asynccontextmanager
async def _behind_nginx(directory: Path, stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the stack through nginx."""
    with _nginx(directory, stack.settings.api.port) as url:
        async with aiohttp.ClientSession(
            url, headers={"Host": NAME}, connector=aiohttp.TCPConnector(ssl=False)
        ) as client:

            async def up() -> bool:
                try:
                    async with client.get("/readyz") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await wait_until(up, "nginx passes on", timeout_s=60)
            yield client


@pytest.mark.timeout(120)
async def test_through_the_nginx_of_the_documentation_tokens_come_as_they_are_made(
    tmp_path: Path, redis_url: str
) -> None:
    async with _stack(tmp_path, redis_url) as stack, _behind_nginx(tmp_path, stack) as client:
        async with client.post("/v1/chat/completions", json={**_SLOW, "stream": True}) as answer:
            lines = [await answer.content.readline() for _ in range(5)]
            job_id = answer.headers["x-orchestrator-job-id"]
            assert any(line.startswith(b"data: {") for line in lines)
            # Had nginx collected the answer, none of it would be here before its end.
            assert (await stack.job(job_id))["state"] == "running"
            answer.close()
        assert (await stack.ended(job_id))["state"] == "cancelled"

        other = await stack.submit(prompt="hi", model="slow", max_tokens=512)
        async with client.get(f"/v1/jobs/{other}/events") as events:
            seen = b""
            while b"job.started" not in seen:
                seen += await events.content.readline()
            assert (await stack.job(other))["state"] == "running"
            events.close()
        async with client.delete(f"/v1/jobs/{other}") as answer:
            assert answer.status in (200, 202)


async def test_nginx_passes_on_large_bodies_and_whose_page_asks(tmp_path: Path, redis_url: str) -> None:
    async with _stack(tmp_path, redis_url) as stack, _behind_nginx(tmp_path, stack) as client:
        long = json.dumps({"prompt": "x" * 5 * 2**20, "model": "slow", "deadline_s": 0.5}).encode()
        async with client.post("/v1/jobs", data=io.BytesIO(long)) as answer:
            assert answer.status == 202
        for origin, status in ((f"https://{NAME}", 200), ("https://evil.example", 403)):
            async with client.post("/v1/gpu/rebalance", headers={"Origin": origin}) as answer:
                assert answer.status == status


@pytest.mark.parametrize(
    ("trusted", "forwarded", "named"),
    [
        ([], "203.0.113.9", "127.0.0.1"),
        (["10.0.0.0/8"], "203.0.113.9", "127.0.0.1"),
        (["127.0.0.1"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.1"], "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        (["127.0.0.0/8", "10.0.0.0/8"], "1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        (["127.0.0.1"], "no address", "no address"),
    ],
    ids=str,
)
async def test_the_log_names_the_client_behind_trusted_proxies_only(
    store: Store, tmp_path: Path, trusted: list[str], forwarded: str, named: str
) -> None:
    key = await made(store)
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), format="{message}", level="INFO")
    try:
        async with desk(store, tmp_path, api={"trusted_proxies": trusted}) as api:
            headers = {"X-Forwarded-For": forwarded, **bearer(key[:-1])}
            async with api.http.get(f"{api.url}/v1/jobs", headers=headers) as answer:
                assert answer.status == 401
    finally:
        logger.remove(sink)
    (line,) = [line for line in said if "401" in line]
    assert f"GET /v1/jobs from {named}: 401 no-key" in line
