"""A whole stack over the fake NVIDIA driver, whose cards the test sets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.simulator.host import SimulatedHost
from shared.config import SimulatorSettings
from tests.kit.backends import registration
from tests.kit.configs import FAST, free_ports
from tests.kit.fake_nvml import GB, card, environment, write_state
from tests.kit.stack import Json, Stack
from tests.kit.waiting import wait_until

GPU_IS_LOST = 15
SIZES = {"alpha": 2.0, "beta": 6.0, "gamma": 8.0}
"""The models of ``three_models`` and their GB."""


@dataclass
class Driver:
    """What the fake driver says of its cards; ``use`` is the share of a card's 24 GB."""

    library: Path
    state: Path
    cards: dict[int, dict[str, Any]] = field(default_factory=dict)

    def set(self, index: int = 0, *, use: float | None = None, **changes: object) -> None:
        """Change one card and leave the others as they are."""
        if use is not None:
            changes["mem_used"] = int(use * 24 * GB)
        self.cards[index] = {**self.cards.get(index, {}), **changes}
        states = [card(number, **says) for number, says in self.cards.items()]
        write_state(self.state, {"count": len(self.cards)}, *states)

    def lose(self, index: int) -> None:
        """Let one card fall off the bus; ``set`` brings it back."""
        states = [card(number, **says) for number, says in self.cards.items()]
        write_state(self.state, {"count": len(self.cards), f"gpu{index}.err.*": GPU_IS_LOST}, *states)

    @property
    def environ(self) -> dict[str, str]:
        return environment(self.library, self.state)


@asynccontextmanager
async def nvml_stack(
    directory: Path, redis_url: str, driver: Driver, models: Sequence[Mapping[str, Any]]
) -> AsyncIterator[Stack]:
    """Monitor, router and api; the monitor reads the fake driver, no model is registered as simulated."""
    config = {
        "redis": {"url": redis_url},
        "api": {"port": free_ports(1)[0]},
        "gpu": {"source": "nvml", "interval_s": 0.2},
        "models": list(models),
        "router": {"retry_base_s": 0.05},
    }
    async with Stack(directory, config) as stack:
        stack.start("monitor", environ=driver.environ)
        await stack.start_all(("router", "api"))
        await wait_until(lambda: probed(stack), "the monitor has seen every model", timeout_s=60)
        yield stack


async def probed(stack: Stack) -> bool:
    view = await stack.fleet.view(heads=0)
    residences = [model.fields.get("residence") for model in view.models]
    return bool(residences) and set(residences) == {"resident"}


@asynccontextmanager
async def three_models(**gpus: str) -> AsyncIterator[list[Json]]:
    """Servers of 2, 6 and 8 GB, as somebody would register real ones."""
    served = [registration(name, vram_gb=size, tokens_per_second=FAST) for name, size in SIZES.items()]
    async with SimulatedHost(served, SimulatorSettings(load_s=0), free_ports=True) as host:
        yield [
            {
                "name": entry.name,
                "port": entry.port,
                "vram_gb": entry.vram_gb,
                "agent_types": ["Chat"],
                **({"gpu": gpus[entry.name]} if entry.name in gpus else {}),
            }
            for entry in host.registrations
        ]
