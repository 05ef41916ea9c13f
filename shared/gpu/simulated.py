"""GPU readings of the simulator, over its control endpoint."""

from __future__ import annotations

from typing import Literal

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.gpu.source import Cause, GpuProcess, GpuReading, GpuUnavailable

TIMEOUT_S = 2.0


class _Process(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    pid: int | None = None
    name: str | None = None
    memory_mb: float | None = None

    def value(self) -> GpuProcess:
        return GpuProcess(self.pid, self.memory_mb, self.name)


class _Gpu(BaseModel):
    """One entry of ``GET /gpu``; fields that aren't known here are ignored."""

    model_config = ConfigDict(allow_inf_nan=False)

    index: int = Field(ge=0)
    simulated: Literal[True]
    uuid: str | None = None
    name: str | None = None
    memory_total_mb: float | None = None
    memory_free_mb: float | None = None
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_draw_w: float | None = None
    power_limit_w: float | None = None
    fan_percent: float | None = None
    thermal_slowdown: bool | None = None
    power_capped: bool | None = None
    processes: tuple[_Process, ...] | None = None

    def reading(self) -> GpuReading:
        return GpuReading(
            index=self.index,
            uuid=self.uuid,
            name=self.name,
            memory_total_mb=self.memory_total_mb,
            memory_free_mb=self.memory_free_mb,
            gpu_utilization_percent=self.utilization_percent,
            temperature_c=self.temperature_c,
            power_draw_w=self.power_draw_w,
            power_limit_w=self.power_limit_w,
            fan_percent=self.fan_percent,
            thermal_slowdown=self.thermal_slowdown,
            power_capped=self.power_capped,
            processes=None if self.processes is None else tuple(map(_Process.value, self.processes)),
        )


_ANSWER = TypeAdapter(tuple[_Gpu, ...])


class SimulatedSource:
    """Reads the simulated GPUs at ``GET <base_url>/gpu``; the session stays the caller's."""

    name = "simulated"
    simulated = True

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._url = f"{base_url}/gpu"

    async def read(self) -> list[GpuReading]:
        """Every simulated GPU.

        Raises ``GpuUnavailable``: nothing answers within ``TIMEOUT_S``, or what answers is no simulator.
        """
        try:
            async with self._session.get(
                self._url, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), allow_redirects=False
            ) as response:
                body = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            words = str(error) or type(error).__name__
            raise GpuUnavailable(Cause.NOT_ANSWERING, f"simulator at {self._url}: {words}") from error
        if status != 200:
            raise GpuUnavailable(Cause.UNREADABLE, f"{self._url} answers with status {status}")
        try:
            return [gpu.reading() for gpu in _ANSWER.validate_json(body)]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise GpuUnavailable(Cause.UNREADABLE, f"{self._url}: {where}: {first['msg']}") from error

    async def aclose(self) -> None:
        """Nothing of its own to close."""
