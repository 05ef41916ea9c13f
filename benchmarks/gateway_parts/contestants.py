"""The contestants: the stub itself, nginx, LiteLLM, the routers of sglang and vLLM, and us."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.gateway_parts.load import MARK, Measure
from benchmarks.gateway_parts.ours import start_stack
from benchmarks.gateway_parts.peers import VERSIONS, peer_programs
from benchmarks.gateway_parts.processes import Bench, Unavailable, Usage, free_ports, usage
from shared.process import ChildProcess

_READY_S = 120.0
"""LiteLLM needs 17 s on an idle machine."""
_ABSENT_S = 20.0
"""How long "no such page" may be an answer: before its first look at the backend a gateway knows no model."""
_PROBES = (Measure("probe", 1), Measure("probe", 1, stream=True))


@dataclass(frozen=True)
class Contestant:
    """Something that answers ``POST /v1/chat/completions`` on a port of 127.0.0.1."""

    name: str
    label: str
    port: int
    parts: Mapping[str, ChildProcess]

    def usage(self) -> dict[str, Usage]:
        """What each part has used so far."""
        return {name: usage(process) for name, process in self.parts.items()}


Starter = Callable[[Bench], Contestant]


def _direct(bench: Bench) -> Contestant:
    return Contestant("direct", "direct", bench.stub_port, {})


_NGINX = """daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    upstream stub {{ server 127.0.0.1:{stub}; keepalive 64; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def _nginx(bench: Bench) -> Contestant:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        raise Unavailable("no nginx on PATH or in the usual directories: install one to have the floor")
    (port,) = free_ports(1)
    own = bench.directory / "nginx"
    own.mkdir()
    path = own / "nginx.conf"
    path.write_text(_NGINX.format(directory=own, stub=bench.stub_port, port=port))
    shown = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    process = bench.start("nginx", [program, "-e", own / "start.log", "-p", own, "-c", path])
    return Contestant("nginx", f"nginx {shown.strip().rpartition('/')[2]}", port, {"nginx": process})


def _litellm(bench: Bench) -> Contestant:
    programs = peer_programs(bench.peers, "litellm")
    (port,) = free_ports(1)
    backend = {
        "model": "openai/stub",
        "api_base": f"http://127.0.0.1:{bench.stub_port}/v1",
        "api_key": "none",
    }
    config = {
        "model_list": [{"model_name": "stub", "litellm_params": backend}],
        "litellm_settings": {"telemetry": False},
    }
    path = bench.directory / "litellm.yaml"
    path.write_text(yaml.safe_dump(config))
    environ = {
        # Without one or the other it does not start; no key is checked, which is the faster of the two.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
    }
    options = ["--config", path, "--host", "127.0.0.1", "--port", port, "--num_workers", 1]
    process = bench.start("litellm", [programs / "litellm", *options], environ)
    return Contestant("litellm", _version("litellm"), port, {"litellm": process})


def _router(name: str, *command: str) -> Starter:
    def start(bench: Bench) -> Contestant:
        programs = peer_programs(bench.peers, name)
        port, metrics = free_ports(2)
        options = ["--host", "127.0.0.1", "--port", port, "--prometheus-port", metrics]
        options += ["--worker-urls", f"http://127.0.0.1:{bench.stub_port}", "--policy", "round_robin"]
        process = bench.start(name, [programs / command[0], *command[1:], *options])
        return Contestant(name, _version(name), port, {name: process})

    return start


def _ours(name: str, label: str, backend: str) -> Starter:
    def start(bench: Bench) -> Contestant:
        port, parts = start_stack(bench, name, backend)
        return Contestant(name, label, port, parts)

    return start


STARTERS: Mapping[str, Starter] = {
    "direct": _direct,
    "nginx": _nginx,
    "vllm-router": _router("vllm-router", "vllm-router"),
    "sglang-router": _router("sglang-router", "python", "-m", "sglang_router.launch_router"),
    "litellm": _litellm,
    "us": _ours("us", "us (llama_cpp)", "llama_cpp"),
    "us-vllm": _ours("us-vllm", "us (vllm)", "vllm"),
}
"""In the order of the tables."""


def await_answers(contestant: Contestant) -> None:
    """Wait until it passes on whole answers of both kinds; raises ``Unavailable`` with what came instead."""
    began = time.monotonic()
    for measure in _PROBES:
        while (wrong := _wrong(contestant.port, measure)) is not None:
            for part, process in contestant.parts.items():
                if process.poll() is not None:
                    last = " ".join(process.last_lines(3)) or "no output"
                    raise Unavailable(f"{part} ended while starting: {last[:300]}")
            absent = wrong.startswith(("404", "405"))
            if time.monotonic() - began > (_ABSENT_S if absent else _READY_S):
                raise Unavailable(f"POST /v1/chat/completions (stream: {measure.stream}): {wrong}")
            time.sleep(0.1)


def _wrong(port: int, measure: Measure) -> str | None:
    """What is wrong with its answer to one request, None if nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", measure.body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    if answer.status != 200:
        return f"{answer.status} {body[:200].decode(errors='replace')}"
    if body.count(MARK) != measure.chunks or (b"data: [DONE]" in body) != measure.stream:
        return f"not the whole answer of the stub: {body[:200].decode(errors='replace')}"
    return None


def _version(name: str) -> str:
    package, _, version = VERSIONS[name].partition("==")
    return f"{package.partition('[')[0]} {version}"


def peers_directory() -> Path:
    """In the checkout, so that it is kept from run to run."""
    return Path(__file__).resolve().parents[2] / ".venv-peers"
