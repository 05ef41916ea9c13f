"""Ports for test servers: no two runs share them, and no connection has one by accident."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.kit.ports import free_ports
from tests.kit.stack import ROOT

_ASK = "from tests.kit.ports import free_ports; print(*free_ports(50), flush=True); input()"


def test_runs_at_the_same_time_have_ports_of_their_own() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ASK], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = {int(port) for port in other.stdout.readline().split()}
        ours = set(free_ports(50))
        other.communicate("over\n")

    assert (len(ours), len(theirs), ours & theirs) == (50, 50, set())


def test_what_was_handed_out_is_not_handed_out_again_although_nothing_listens_there() -> None:
    first, second = free_ports(100), free_ports(100)

    assert len({*first, *second}) == 200


def test_a_port_that_something_listens_on_is_left_out() -> None:
    (taken,) = free_ports(1)
    with socket.create_server(("127.0.0.1", taken)):
        later = [port for _ in range(12) for port in free_ports(100)]  # once round, and more

    assert taken not in later


def test_the_kernel_gives_none_of_them_to_a_connection() -> None:
    with socket.socket() as chosen_by_the_kernel:
        chosen_by_the_kernel.bind(("127.0.0.1", 0))
        lowest = min(32_768, chosen_by_the_kernel.getsockname()[1])

    assert max(free_ports(20)) < lowest
