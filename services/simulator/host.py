"""A simulated GPU host: one card, a server for each simulated model, and a control port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from services.simulator.backend import SimulatedBackend
from services.simulator.card import Card
from services.simulator.control import control_app
from services.simulator.faults import Fault
from services.simulator.frontend import Frontend
from services.simulator.listener import Listener
from services.simulator.state import ModelState
from services.simulator.vllm_backend import VllmBackend
from services.simulator.vllm_model import VllmModel
from shared.config import SimulatorSettings
from shared.errors import ConfigError
from shared.registry import Registration
from shared.states import BackendType


class SimulatedHost:
    """Everything that the simulator serves; use it as an async context manager, or ``start`` and ``stop``.

    Only the simulated ones of ``models`` are served. With ``free_ports`` every port, also the control port,
    is picked by the system (see ``registrations`` and ``control_url``), for tests side by side.
    """

    def __init__(
        self,
        models: Sequence[Registration],
        settings: SimulatorSettings,
        *,
        free_ports: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        self.card = Card(settings)
        self.backends: Mapping[str, SimulatedBackend] = {}
        self._models = tuple(model for model in models if model.simulated)
        self._settings = settings
        self._free_ports = free_ports
        self._host = host
        self._control_port = 0
        self._resources = AsyncExitStack()

    async def start(self) -> None:
        """Listen on every port and begin to load every model; raises ``PortTaken`` or ``ConfigError``."""
        async with AsyncExitStack() as resources:
            backends: dict[str, SimulatedBackend] = {}
            for model in self._models:
                port = 0 if self._free_ports else _port(model)
                backend = self._backend(model, port)
                resources.push_async_callback(backend.close)
                backends[model.name] = backend
            port = 0 if self._free_ports else self._settings.port
            control = Listener(self._host, port, "simulator.port", control_app(self.card, backends))
            resources.push_async_callback(control.release)
            await control.open()
            for backend in backends.values():
                await backend.load()
            self.backends, self._control_port = backends, control.port
            self._resources = resources.pop_all()

    def _backend(self, model: Registration, port: int) -> SimulatedBackend:
        if model.backend is BackendType.VLLM:
            return VllmBackend(VllmModel(model, self._settings, self.card), self._host, port)
        state = ModelState(model, self._settings, self.card)
        return SimulatedBackend(state, Frontend(state).handle, self._host, port)

    async def stop(self) -> None:
        """Cut all connections and give all ports back."""
        await self._resources.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def control_url(self) -> str:
        return f"http://{self._host}:{self._control_port}"

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The served models, with the ports that they really listen on."""
        return tuple(
            backend.state.registration.model_copy(update={"port": backend.port})
            for backend in self.backends.values()
        )

    async def set_fault(self, name: str, fault: Fault | None) -> None:
        """Make one model go wrong from now on, or (None) heal it."""
        await self.backends[name].set_fault(fault)


def _port(model: Registration) -> int:
    if model.port is None:
        raise ConfigError(f"model {model.name!r} is simulated and has no 'port' to be served on: give it one")
    return model.port
