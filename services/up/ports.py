"""Which ports are taken: the simulator moves out of the way, the api says which setting to change."""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from shared.config import Settings
from shared.errors import ConfigError, OrchestratorError
from shared.registry import Registration

LOOPBACK = "127.0.0.1"
_OFFSET = 10_000
"""A moved port keeps its last digits: 8080 becomes 18080, below the range that systems give out."""


class CannotStart(OrchestratorError):
    """Something outside the settings is in the way; the message says what and what to do."""


def bind_error(host: str, port: int) -> OSError | None:
    """Why a server could not listen there, or ``None`` where it could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
            server.listen(1)
        # BSD systems let a server bind beside one that listens on every address: see whether one answers.
        with socket.socket(family, kind, protocol) as client:
            client.settimeout(1.0)
            if client.connect_ex(address) == 0:
                return OSError(errno.EADDRINUSE, "Address already in use")
    except OSError as error:
        return error
    return None


def require_distinct_ports(settings: Settings) -> None:
    """Raise ``ConfigError``, naming both settings, where two listeners were given one port.

    Only what somebody wrote counts for the simulator: its defaults move out of the way, as from any program.
    """
    taken: dict[int, str] = {}
    for name, port in _given_ports(settings):
        if port in taken:
            raise _one_port_twice(name, taken[port], port)
        taken[port] = name
    for model in settings.models:
        if _served(model) and model.port in taken:
            raise _one_port_twice(f"the port of the model {model.name}", taken[model.port], model.port)


def _given_ports(settings: Settings) -> Iterator[tuple[str, int]]:
    yield "api.port", settings.api.port
    if settings.redis.url is None:
        yield "redis.embedded_port", settings.redis.embedded_port
    runs = settings.simulates or settings.gpu.source == "simulated"
    if runs and "port" in settings.simulator.model_fields_set:
        yield "simulator.port", settings.simulator.port


def _one_port_twice(name: str, other: str, port: int) -> ConfigError:
    return ConfigError(f"{name} and {other} are both {port}: give one of them another port")


def require_api_port(settings: Settings) -> None:
    """Raise ``CannotStart`` where the api's port is taken, ``ConfigError`` where it can't be listened on."""
    host, port = settings.api.host, settings.api.port
    error = bind_error(host, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise CannotStart(
            f"api.port {port} on {host} is taken by another program: "
            "stop it, or set api.port (in the file, or ORCH_API__PORT)"
        )
    if error.errno == errno.EACCES:
        raise ConfigError(f"api.port = {port}: {error.strerror}: use one from 1024 on")
    raise ConfigError(
        f"api.host = {host!r}: {error.strerror}: give an address of this machine, such as {LOOPBACK}"
    )


def move_simulator(
    settings: Settings, had: Mapping[int, int] = MappingProxyType({})
) -> tuple[Settings, list[str]]:
    """Settings in which whatever is simulated has a free port, and one sentence for every move.

    ``had``: the ports that the simulator has already, by those that were wanted.
    """
    used = {settings.api.port, settings.redis.embedded_port}
    used |= {model.port for model in settings.registrations if model.port and not _served(model)}
    moves: list[str] = []

    def place(what: str, wanted: int) -> int:
        if wanted in had:
            used.add(had[wanted])
            return had[wanted]
        port = next(
            port for port in _candidates(wanted) if port not in used and not bind_error(LOOPBACK, port)
        )
        used.add(port)
        if port != wanted:
            moves.append(f"port {wanted} is taken: {what} listens on {port} instead")
        return port

    models = tuple(
        model.model_copy(update={"port": place(f"the simulated {model.name}", model.port)})
        if _served(model) and model.port
        else model
        for model in settings.registrations
    )
    control = settings.simulator.model_copy(
        update={"port": place("the simulator's control", settings.simulator.port)}
    )
    return settings.model_copy(update={"models": models, "simulator": control}), moves


def _served(model: Registration) -> bool:
    return model.simulated and model.url is None


def _candidates(wanted: int) -> Iterator[int]:
    return itertools.chain([wanted], range(wanted + _OFFSET, 65_536), range(_OFFSET, 65_536))
