"""Which listener gets which port: the simulator moves, what was given twice is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import JsonValue

from services.up.app import write_effective
from services.up.ports import move_simulator, require_distinct_ports
from shared import config
from shared.errors import ConfigError
from tests.kit.redis_fixture import free_port


def test_the_simulator_moves_off_taken_ports_and_says_so(tmp_path: Path) -> None:
    api, control, second = free_port(), free_port(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        models = [
            {"name": "first", "port": taken, "simulated": True},
            {"name": "second", "port": second, "simulated": True},
            {"name": "third", "port": api, "simulated": True},
            {"name": "real", "port": taken},
        ]
        settings = config.parse(
            {"models": models, "simulator": {"port": control}, "api": {"port": api}}, "the test"
        )
        moved, notes = move_simulator(settings)
    ports = {model.name: model.port for model in moved.models}
    assert ports["second"] == second
    assert moved.simulator.port == control
    assert ports["real"] == taken
    assert len({ports["first"], ports["second"], ports["third"], taken, control, api}) == 6
    assert notes == [
        f"port {taken} is taken: the simulated first listens on {ports['first']} instead",
        f"port {api} is taken: the simulated third listens on {ports['third']} instead",
    ]
    path = write_effective(moved, tmp_path / "effective.yaml")
    assert config.load({"ORCH_CONFIG": str(path)}).registrations == moved.registrations


@pytest.mark.parametrize(
    ("sections", "first", "second"),
    [
        ({"redis": {"embedded_port": 8000}}, "redis.embedded_port", "api.port"),
        ({"simulator": {"port": 8000}}, "simulator.port", "api.port"),
        ({"simulator": {"port": 6390}}, "simulator.port", "redis.embedded_port"),
        ({"models": [{"name": "m", "port": 6390, "simulated": True}]}, "model m", "redis.embedded_port"),
    ],
)
def test_one_port_given_to_two_listeners_is_refused_by_both_names(
    sections: dict[str, JsonValue], first: str, second: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{first} and {second} are both (8000|6390): give one"):
        require_distinct_ports(config.parse(sections, "the test"))


def test_defaults_of_the_simulator_and_ports_of_other_servers_are_no_clash() -> None:
    for sections in (
        {"api": {"port": 8080}},
        {"api": {"port": 8090}},
        {"redis": {"embedded_port": 8000, "url": "redis://127.0.0.1:1/0"}},
    ):
        require_distinct_ports(config.parse(sections, "the test"))
