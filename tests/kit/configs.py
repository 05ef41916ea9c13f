"""Configurations for test stacks: small simulated models on free ports."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

FAST = 1_000_000.0
"""Tokens a second at which generating costs no time."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


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
        "router": {"retry_base_s": 0.05, "idle_timeout_s": 2.0},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config
