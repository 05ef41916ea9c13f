"""Steering the simulator of a running stack through its control port."""

from __future__ import annotations

from typing import Any

from tests.kit.stack import Json, Stack
from tests.kit.waiting import wait_until


class Simulation:
    """The simulated GPU host of one stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._control = f"http://127.0.0.1:{stack.settings.simulator.port}"

    async def gpu(self, **changes: float | None) -> None:
        """Pin memory (``utilization`` 0..1) or heat (``temperature_c``) of the card; None lets go."""
        await self._patch("/gpu", changes)

    async def model(self, name: str, **changes: Any) -> None:
        """Change a model's speed or residence."""
        await self._patch(f"/models/{name}", changes)

    async def fault(self, name: str, **fault: Any) -> None:
        """Make a model misbehave; ``kind=None`` heals it."""
        await self._patch(f"/models/{name}", {"fault": fault if fault.get("kind") else None})

    async def level(self, **levels: str) -> None:
        """Wait until the monitor published these levels of the card (``pressure``, ``thermal``)."""

        async def reached() -> bool:
            found = await self._stack.fleet.level("host/0")
            return all(found.get(name) == value for name, value in levels.items())

        await wait_until(reached, f"levels {levels}")

    async def held(self, job_id: str) -> Json:
        """The job once it is held with a reason."""

        async def waiting() -> Json | None:
            job = await self._stack.job(job_id)
            decision = job["decision"]
            return job if decision and decision["action"] == "hold" else None

        return await wait_until(waiting, f"job {job_id} is held")

    async def busy_slots(self, name: str) -> int:
        """Slots of a model that generate now, as its server says."""
        port = next(model.port for model in self._stack.settings.models if model.name == name)
        async with self._stack.http.get(f"http://127.0.0.1:{port}/slots") as answer:
            return sum(1 for slot in await answer.json() if slot["is_processing"])

    async def _patch(self, path: str, body: dict[str, Any]) -> None:
        async with self._stack.http.patch(f"{self._control}{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()
