"""One simulated vLLM server with its port, which opens only once it is ready."""

from __future__ import annotations

import asyncio

from services.simulator.backend import SimulatedBackend
from services.simulator.vllm_engine import HoldMode
from services.simulator.vllm_frontend import VllmFrontend
from services.simulator.vllm_model import VllmModel
from shared.states import Residence

_LINGER_S = 3.5
"""How long the api server of a dead engine goes on to answer 503 (seen), before ``simulator.speedup``."""


class VllmBackend(SimulatedBackend):
    """A vLLM look-alike: as a control panel for a person, and as a double for tests."""

    def __init__(self, model: VllmModel, host: str, port: int) -> None:
        super().__init__(model, VllmFrontend(model).handle, host, port)
        self.model = model
        self._life: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Start the server, whose port stays closed until ``load_s`` has passed; wake or resume it if it is
        held.
        """
        if self.residence in (Residence.SLEEPING, Residence.DRAINING):
            self.model.wake()
        elif self.residence in (Residence.UNLOADED, Residence.FAILED):
            await self._stop()
            self.model.begin_load()
            if self.model.loading_s > 0:
                self._life = asyncio.create_task(self._live())
            else:
                await self._follow_fault()
                self._life = asyncio.create_task(self._die_with_the_engine())

    async def unload(self) -> None:
        """Stop the server: what runs is cut off, further connections are refused."""
        await self._stop()

    async def sleep(self) -> None:
        """What ``POST /sleep`` does: running requests are aborted, the memory is given back."""
        if self.residence in (Residence.RESIDENT, Residence.DRAINING):
            await self.model.sleep(1, HoldMode.ABORT)

    async def pause(self, *, paused: bool) -> None:
        """What ``POST /pause?mode=keep`` does, or (False) ``POST /resume``."""
        if paused and self.residence is Residence.RESIDENT:
            await self.model.engine.hold(HoldMode.KEEP)
        elif not paused and self.residence is Residence.DRAINING:
            self.model.engine.release()

    async def close(self) -> None:
        """Stop for good."""
        await self._stop()
        await self._listener.release()

    async def _stop(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            life.cancel()
            await asyncio.wait({life})
        self.model.unload()
        await self._listener.close()

    async def _live(self) -> None:
        await asyncio.sleep(self.model.loading_s)
        await self._follow_fault()
        await self._die_with_the_engine()

    async def _die_with_the_engine(self) -> None:
        await self.model.died.wait()
        await asyncio.sleep(_LINGER_S / self.model.speedup)
        self.model.unload()
        await self._listener.close()

    async def _follow_fault(self) -> None:
        if self.fault is not None and self.fault.kills_now:
            self.model.kill_engine()
        elif self.residence is not Residence.LOADING:
            await super()._follow_fault()
