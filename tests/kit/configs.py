"""Configurations for test stacks: small simulated models on free ports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.kit.ports import free_ports as free_ports

FAST = 1_000_000.0
"""Tokens a second at which generating costs no time."""


def simulated_model(name: str, port: int, **changes: Any) -> dict[str, Any]:
    """A simulated model that answers at once unless told otherwise."""
    model = {
        "name": name,
        "backend": "llama_cpp",
        "vram_gb": 2.0,
        "port": port,
        "slots": 4,
        "context_tokens": 4096,
        "agent_types": ["Chat"],
        "tokens_per_second": FAST,
        "simulated": True,
    }
    return {**model, **changes}


def simulated_config(models: Sequence[dict[str, Any]] = (), **sections: dict[str, Any]) -> dict[str, Any]:
    """Settings for a whole simulated stack; without ``models``, alpha (2 GB) and beta (6 GB)."""
    api, control, first, second = free_ports(4)
    chosen = list(models) or [
        simulated_model("alpha", first),
        simulated_model("beta", second, vram_gb=6.0, agent_types=["Chat", "MedicalQA"]),
    ]
    config: dict[str, Any] = {
        "api": {"port": api},
        "gpu": {"interval_s": 0.2},
        "models": chosen,
        "simulator": {"port": control, "load_s": 0},
        "router": {"retry_base_s": 0.05, "idle_timeout_s": 10.0},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config
