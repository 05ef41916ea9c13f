"""A simulated GPU host: one card, a server for each simulated model, and a control port."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from loguru import logger

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
from shared.errors import ConfigError, OrchestratorError
from shared.registry import Registration
from shared.states import BackendType

_LEAVE_S = 5.0
"""A model that is taken away listens for as long still: the others learn of it up to two seconds later.

Not where another model is to have its port: then only till it has nothing to do."""
_LOOK_S = 0.2


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
        self._backends: dict[str, SimulatedBackend] = {}
        self._leaving: dict[SimulatedBackend, asyncio.Task[None]] = {}
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
                backends[model.name] = backend = self._backend(model)
                resources.push_async_callback(backend.close)
            port = 0 if self._free_ports else self._settings.port
            control = Listener(self._host, port, "simulator.port", control_app(self.card, backends))
            resources.push_async_callback(control.release)
            await control.open()
            for backend in backends.values():
                await backend.load()
            self._backends, self._control_port = backends, control.port
            self._resources = resources.pop_all()

    async def follow(self, models: Sequence[Registration]) -> None:
        """Serve these from now on; one that is gone, or has moved, goes on till it has nothing to do.

        What needs another server (slots, context, ...) is said in the log and left as it is.
        """
        wanted = {model.name: model for model in models if model.simulated}
        for name, backend in list(self._backends.items()):
            model = wanted.get(name)
            if model is None or (not self._free_ports and model.port != backend.port):
                del self._backends[name]
                self._leave(backend)
            else:
                fixed = backend.state.follow(model)
                if fixed:
                    logger.warning("simulated {}: {} needs a restart of simulator", name, ", ".join(fixed))
        new = [model for name, model in wanted.items() if name not in self._backends]
        # Those whose port is still in use by a model that leaves come last: they wait for it.
        for model in sorted(new, key=lambda model: self._leaver(model) is not None):
            await self._add(model)

    def _leaver(self, model: Registration) -> SimulatedBackend | None:
        """The model that leaves the port which this one is to have."""
        return next((one for one in self._leaving if one.port == model.port), None)

    async def _add(self, model: Registration) -> None:
        leaver = self._leaver(model)
        if leaver is not None and leaver.name == model.name:  # it has come back
            self._leaving.pop(leaver).cancel()
            self._backends[model.name] = leaver
            leaver.state.follow(model)
            return
        if leaver is not None:
            # At once, lest calls for the new one are answered by the old one.
            self._leaving.pop(leaver).cancel()
            self._leave(leaver, linger_s=0.0)
            await asyncio.wait({self._leaving[leaver]})
        try:
            backend = self._backend(model)
        except OrchestratorError as error:
            logger.error("simulated {} is not served: {}", model.name, error)
            return
        self._resources.push_async_callback(backend.close)
        self._backends[model.name] = backend
        await backend.load()
        logger.info("model {} at {} (simulated)", backend.name, backend.url)

    def _leave(self, backend: SimulatedBackend, linger_s: float = _LEAVE_S) -> None:
        self._leaving[backend] = asyncio.create_task(self._close_idle(backend, linger_s))

    async def _close_idle(self, backend: SimulatedBackend, linger_s: float) -> None:
        await asyncio.sleep(linger_s)
        await _idle(backend)
        del self._leaving[backend]
        await backend.close()
        successor = self._backends.get(backend.name)
        if successor is not None:
            successor.state.hold_memory()
        logger.info("simulated {} is served no longer at {}", backend.name, backend.url)

    def _backend(self, model: Registration) -> SimulatedBackend:
        port = 0 if self._free_ports else _port(model)
        if model.backend is BackendType.VLLM:
            return VllmBackend(VllmModel(model, self._settings, self.card), self._host, port)
        state = ModelState(model, self._settings, self.card)
        return SimulatedBackend(state, Frontend(state).handle, self._host, port)

    async def stop(self) -> None:
        """Cut all connections and give all ports back."""
        for task in self._leaving.values():
            task.cancel()
        self._leaving.clear()
        await self._resources.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def backends(self) -> Mapping[str, SimulatedBackend]:
        """The models that are served, by name."""
        return self._backends

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
        await self._backends[name].set_fault(fault)


async def _idle(backend: SimulatedBackend) -> None:
    """Until nothing runs there and nothing waits."""
    for again in itertools.count():
        if not (backend.running or backend.deferred):
            return
        await asyncio.sleep(min(_LOOK_S, again))


def _port(model: Registration) -> int:
    if model.port is None:
        raise ConfigError(f"model {model.name!r} is simulated and has no 'port' to be served on: give it one")
    return model.port
