"""One simulated model with its port."""

from __future__ import annotations

from services.simulator.faults import Fault, FaultKind
from services.simulator.listener import Handler, Listener
from services.simulator.state import Counters, ServedModel
from shared.states import Residence


class SimulatedBackend:
    """A look-alike server on a port: as a control panel for a person, and as a double for tests."""

    def __init__(self, state: ServedModel, handler: Handler, host: str, port: int) -> None:
        self.state = state
        self._listener = Listener(host, port, f"the port of model {state.registration.name}", handler)
        self._host = host

    @property
    def name(self) -> str:
        return self.state.registration.name

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    @property
    def residence(self) -> Residence:
        return self.state.residence

    @property
    def counters(self) -> Counters:
        return self.state.counters

    @property
    def running(self) -> int:
        return self.state.running

    @property
    def deferred(self) -> int:
        return self.state.deferred

    @property
    def peak_running(self) -> int:
        return self.state.peak_running

    @property
    def fault(self) -> Fault | None:
        return self.state.fault

    async def load(self) -> None:
        """Start the server; it answers 503 until ``load_s`` has passed. Does nothing if it runs."""
        if self.residence is Residence.SLEEPING:
            self.state.begin_load(waking=True)
        elif self.residence is Residence.UNLOADED:
            self.state.begin_load()
            await self._follow_fault()

    async def unload(self) -> None:
        """Stop the server: what runs is cut off, further connections are refused."""
        self.state.unload()
        await self._listener.close()

    async def sleep(self) -> None:
        """Free the memory but go on listening, as ``--sleep-idle-seconds`` does; only if idle and loaded."""
        if self.residence is Residence.RESIDENT and self.running == 0:
            self.state.fall_asleep()

    async def set_fault(self, fault: Fault | None) -> None:
        """Make it go wrong from now on, or (None) heal it."""
        self.state.set_fault(fault)
        if self.residence is not Residence.UNLOADED:
            await self._follow_fault()

    async def close(self) -> None:
        """Stop for good."""
        self.state.unload()
        await self._listener.release()

    async def _follow_fault(self) -> None:
        if self.fault is not None and self.fault.kind is FaultKind.REFUSE:
            await self._listener.close()
        else:
            await self._listener.open()
