"""Which source of GPU readings this host has, by the setting ``gpu.source``."""

from __future__ import annotations

from typing import assert_never

import aiohttp
from loguru import logger

from shared.config import Settings
from shared.gpu.nvml import NvmlSource
from shared.gpu.simulated import SimulatedSource
from shared.gpu.source import Cause, GpuSource, GpuUnavailable


async def choose_source(settings: Settings, session: aiohttp.ClientSession) -> GpuSource | None:
    """The source, said once in the log; None = there is none, so memory and heat stay unknown.

    ``auto`` takes the simulator where models are simulated, else NVML where a driver is installed (also one
    that does not run yet), else none.
    """
    match settings.gpu.source:
        case "simulated":
            return _simulated(settings, session)
        case "nvml":
            return _nvml()
        case "none":
            _say_none("gpu.source is none")
            return None
        case "auto":
            if settings.simulates:
                return _simulated(settings, session)
            if await _driver_installed():
                return _nvml()
            _say_none("no NVIDIA driver on this host")
            return None
        case _:
            assert_never(settings.gpu.source)


async def _driver_installed() -> bool:
    source = NvmlSource()
    try:
        await source.read()
    except GpuUnavailable as error:
        return error.cause is not Cause.LIBRARY_MISSING
    finally:
        await source.aclose()
    return True


def _simulated(settings: Settings, session: aiohttp.ClientSession) -> GpuSource:
    url = f"http://{settings.backends.host}:{settings.simulator.port}"
    logger.warning("GPU readings are SIMULATED: they come from the simulator at {}", url)
    return SimulatedSource(session, url)


def _nvml() -> GpuSource:
    logger.info("GPU readings come from NVML")
    return NvmlSource()


def _say_none(why: str) -> None:
    logger.warning(
        "no GPU readings ({}): memory pressure and thermal level are unknown, requests go by load alone", why
    )
