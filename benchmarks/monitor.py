"""What the monitor costs: `python -m benchmarks.monitor [--seconds 20] [--runs 3] [--busy 0]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.simulator.host import SimulatedHost
from shared.config import SimulatorSettings
from shared.registry import Registration
from shared.states import BackendType
from shared.store.server import EmbeddedRedis
from tests.kit import fake_nvml
from tests.kit.backends import long_streams
from tests.kit.configs import free_ports
from tests.kit.stack import Stack
from tests.kit.waiting import wait_until

TARGET = 0.02
"""Most CPU seconds per second for one GPU and three backends at 1 Hz: 2 % of one core."""
WARM_UP_SAMPLES = 5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

MODELS = (
    Registration(name="alpha", vram_gb=2.0, port=1, slots=4, tokens_per_second=50, simulated=True),
    Registration(name="beta", vram_gb=6.0, port=1, slots=4, tokens_per_second=50, simulated=True),
    Registration(name="gamma", vram_gb=8.0, port=1, slots=4, tokens_per_second=50, simulated=True),
)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, in the kernel and outside."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def gpu_section(directory: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """Settings, environment and name of the GPU source: the real binding on a fake driver if possible."""
    if fake_nvml.compiler() is None:
        return {"source": "none"}, {}, "none (no C compiler for the fake NVML)"
    state = directory / "cards"
    fake_nvml.write_state(state, fake_nvml.card(0, compute=f"{os.getpid()}:{8 * fake_nvml.GB}"))
    environ = fake_nvml.environment(fake_nvml.build(directory / "nvml"), state)
    return {"source": "nvml"}, environ, "nvidia-ml-py on a fake driver"


@asynccontextmanager
async def monitored(
    directory: Path, redis_url: str, models: tuple[Registration, ...], gpu: Mapping[str, Any]
) -> AsyncIterator[Stack]:
    """A stack without services whose registry holds these models."""
    config = {
        "redis": {"url": redis_url},
        "api": {"port": free_ports(1)[0]},
        "gpu": {**gpu, "interval_s": 1.0},
        "models": [entry.model_dump(mode="json", exclude_defaults=True) for entry in models],
    }
    async with Stack(directory, config) as stack:
        await stack.fleet.register(models)
        yield stack


async def one_run(stack: Stack, environ: Mapping[str, str], seconds: float) -> float:
    """CPU seconds per second at 1 Hz of one monitor process, from its fifth round of samples on.

    On a machine that is busy with other work beats are missed, so what was used is divided by the rounds that
    took place and not by the time that passed: rather too much than too little.
    """

    async def samples() -> int:
        return int(await stack.redis.xlen(stack.keys.backend_samples))

    first = await samples()
    process = stack.start("monitor", environ=environ)

    async def warm() -> bool:
        return await samples() >= first + WARM_UP_SAMPLES * len(MODELS)

    await wait_until(warm, "the monitor has warmed up", timeout_s=60)
    before, count = cpu_s(process.pid), await samples()
    await asyncio.sleep(seconds)
    used, rounds = cpu_s(process.pid) - before, (await samples() - count) / len(MODELS)
    await stack.stop(process)
    if rounds < seconds / 2:
        raise SystemExit(f"only {rounds:.0f} rounds in {seconds:.0f} s: the machine is too busy to measure")
    return used / rounds


async def measure(seconds: float, runs: int, busy: int, *, vllm: bool) -> None:
    entries = tuple(
        entry.model_copy(update={"backend": BackendType.VLLM}) if vllm and entry.name == "gamma" else entry
        for entry in MODELS
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        gpu, environ, source = gpu_section(directory)
        with EmbeddedRedis(free_ports(1)[0], directory / "redis") as server:
            async with SimulatedHost(entries, SimulatorSettings(load_s=0), free_ports=True) as host:
                models = tuple(entry.model_copy(update={"simulated": False}) for entry in host.registrations)
                async with monitored(directory, server.url, models, gpu) as stack:
                    url = f"http://127.0.0.1:{models[0].port}"
                    async with long_streams(stack.http, url, busy):
                        shares = [await one_run(stack, environ, seconds) for _ in range(runs)]
    median = statistics.median(shares)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, GPU source: {source}")
    print(f"{runs} runs of {seconds:.0f} s, 1 Hz, 1 GPU, 3 backends, {busy} streams running on one of them")
    print("CPU s per round: " + "  ".join(f"{share:.4f}" for share in shares))
    print(f"median {100 * median:.2f} % of one core (target {100 * TARGET:.0f} %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="streams that run on one backend meanwhile")
    parser.add_argument("--vllm", action="store_true", help="one of the three is a (simulated) vLLM")
    chosen = parser.parse_args()
    asyncio.run(measure(chosen.seconds, chosen.runs, chosen.busy, vllm=chosen.vllm))


if __name__ == "__main__":
    main()
