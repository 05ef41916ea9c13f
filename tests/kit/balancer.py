"""A balancer on GPU readings and a clock that a test sets."""

from __future__ import annotations

import asyncio
from typing import Any

from shared.balancer import BackendType, LoadBalancer, RoutingDecision
from shared.gpu.source import GpuReading, GpuUnavailable

_TOTAL_MB = 24 * 1024.0


class Cards:
    """GPU readings that a test sets; an input of the balancer, as NVML is."""

    name = "test"
    simulated = True

    def __init__(self, *readings: GpuReading) -> None:
        self.readings = list(readings)
        self.error: GpuUnavailable | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.reads = 0
        self.closed = False

    async def read(self) -> list[GpuReading]:
        self.reads += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.readings

    async def aclose(self) -> None:
        self.closed = True


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A balancer with its cards and its clock."""

    def __init__(self, *readings: GpuReading, **options: Any) -> None:
        self.cards, self.clock = Cards(*readings), Clock()
        self.balancer = LoadBalancer(self.cards, clock=self.clock, **options)

    def register_specified(self, **fields: Any) -> None:
        for name, vram_gb, port in (
            ("tiny-llama-1b", 2.3, 8080),
            ("bi-medix2", 6.5, 8081),
            ("openins-llama3-8b", 7.8, 8084),
        ):
            self.balancer.register_model(name, BackendType.LLAMA_CPP, vram_gb, port, **fields)

    async def decide(self, **request: Any) -> RoutingDecision:
        return await self.balancer.decide_model_and_backend(**request)

    async def later(self, seconds: float, *readings: GpuReading, **request: Any) -> RoutingDecision:
        """The decision after some time, with other readings if any are given."""
        self.clock.now_s += seconds
        if readings:
            self.cards.readings = list(readings)
        return await self.decide(**request)


def card(share: float = 0.3, temperature_c: float = 49.0, *, index: int = 0, **changes: Any) -> GpuReading:
    """A 24 GB card with this share of its memory in use."""
    fields = {"memory_total_mb": _TOTAL_MB, "memory_free_mb": (1 - share) * _TOTAL_MB, **changes}
    return GpuReading(index, uuid=f"GPU-{index}", temperature_c=temperature_c, **fields)


def specified() -> Bench:
    """The specification's three models beside a card at ease."""
    made = Bench(card())
    made.register_specified()
    return made
