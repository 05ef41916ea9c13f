"""The decision stream of a real run, replayed through the core, gives the same decisions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.decision.recording import replay
from shared.decision.routing import decide
from shared.store.streams import read_range
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.simulation import Simulation
from tests.kit.stack import running_stack


@pytest.mark.slow
async def test_every_decision_of_a_run_is_made_again_from_the_stream(tmp_path: Path, redis_url: str) -> None:
    """Load, a fault, critical pressure and critical heat; each entry says what it was decided on."""
    ports = free_ports(2)
    models = [
        simulated_model("alpha", ports[0], slots=2, tokens_per_second=400),
        simulated_model("beta", ports[1], slots=2, tokens_per_second=400, vram_gb=6.0),
    ]
    services = ("simulator", "monitor", "router", "api")
    async with running_stack(tmp_path, redis_url, simulated_config(models), services) as stack:
        simulation = Simulation(stack)
        await simulation.fault("beta", kind="status", status=500, times=2)
        jobs = [await stack.submit(prompt="hi", agent_type="Chat", max_tokens=20) for _ in range(20)]
        await simulation.gpu(utilization=0.9)
        await simulation.level(pressure="critical")
        jobs += [await stack.submit(prompt="hi", model="beta", max_tokens=4)]
        await simulation.held(jobs[-1])
        await simulation.gpu(utilization=0.6, temperature_c=90)
        await simulation.level(thermal="critical")
        await simulation.gpu(utilization=0.6, temperature_c=50)
        await asyncio.gather(*(stack.ended(job) for job in jobs))
        entries = await read_range(stack.redis, stack.keys.decisions, count=1000)

    assert {entry.fields["action"] for entry in entries} == {"dispatch", "hold"}
    for entry in entries:
        decision = decide(*replay(entry.fields["inputs"]))
        assert (decision.action, decision.code) == (entry.fields["action"], entry.fields["code"])
        assert decision.reason == entry.fields["reason"]
        assert (decision.model.name if decision.model else None) == entry.fields.get("model")
