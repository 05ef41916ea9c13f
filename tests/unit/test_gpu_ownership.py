"""Which processes on a GPU belong to which server, told by the real /proc of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from services.monitor.ownership import Server, find_owners
from tests.kit.configs import free_ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_PARENT = """
import os, socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(listener.getsockname()[1], child.pid, flush=True)
sys.stdin.read()
child.communicate()
"""


@dataclass(frozen=True)
class Family:
    """A process that listens and its child, which doesn't."""

    port: int
    parent: int
    child: int


@contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its input does."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.communicate()


@pytest.fixture
def family() -> Iterator[Family]:
    with process(sys.executable, "-c", _PARENT) as parent:
        assert parent.stdout is not None
        port, child = map(int, parent.stdout.readline().split())
        yield Family(port, parent.pid, child)


@contextmanager
def starting(*words: str) -> Iterator[int]:
    """The pid of a process with such a command line, which listens on nothing."""
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    with process(sys.executable, "-c", code, *words) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield running.pid


def test_a_child_of_the_process_that_listens_is_the_servers_own(family: Family) -> None:
    server = Server(family.port, vllm=False)
    assert find_owners([family.child], [server]) == {server: {family.child}}
    assert find_owners([family.parent, family.child], [server]) == {server: {family.parent, family.child}}


def test_a_process_above_or_beside_the_server_is_not_its_own(family: Family) -> None:
    server = Server(family.port, vllm=False)
    with starting() as other:
        assert find_owners([os.getpid(), other], [server]) == {}


def test_pids_that_do_not_exist_here_belong_to_nobody(family: Family) -> None:
    """As in a container that sees the pids of its host."""
    gone = 2**22 + 1
    assert find_owners([gone, 1], [Server(family.port, vllm=False)]) == {}


def test_a_port_that_nothing_listens_on_owns_nothing(family: Family) -> None:
    assert find_owners([family.child], [Server(free_ports(1)[0], vllm=False)]) == {}


@pytest.mark.parametrize(
    "words",
    [
        ("vllm.entrypoints.openai.api_server", "--port", "8123"),
        ("vllm.entrypoints.openai.api_server", "--port=8123"),
        ("/opt/venv/bin/vllm", "serve", "some/model", "--port", "8123"),
    ],
)
def test_a_vllm_that_does_not_listen_yet_is_known_by_its_command_line(words: tuple[str, ...]) -> None:
    ours, another, default = (Server(port, vllm=True) for port in (8123, 8124, 8000))
    with starting(*words) as pid:
        assert find_owners([pid], [ours, another, default]) == {ours: {pid}}
        assert find_owners([pid], [Server(8123, vllm=False)]) == {}


def test_a_vllm_without_a_port_is_on_its_default_one() -> None:
    default, another = Server(8000, vllm=True), Server(8001, vllm=True)
    with starting("vllm", "serve", "some/model") as pid:
        assert find_owners([pid], [default, another]) == {default: {pid}}


def test_another_program_that_names_the_port_is_no_vllm() -> None:
    with starting("comfyui", "--port", "8123", "--listen") as pid:
        assert find_owners([pid], [Server(8123, vllm=True)]) == {}
