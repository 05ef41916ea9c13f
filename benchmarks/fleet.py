"""A fleet of 50 models on 8 GPUs with full queues, written into Redis through the store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from shared.config import Settings
from shared.jobs import JobRequest
from shared.registry import Registration
from shared.states import BackendType
from shared.store.fleet import BackendSample, FleetStore, GpuSample
from shared.store.jobs import JobStore
from shared.submission import new_job, new_job_id

MODELS, GPUS, AGENTS = 50, 8, 10
SETTINGS = Settings()
SUBMITTERS = 32


def registrations() -> tuple[Registration, ...]:
    """50 models: every fifth one vLLM, sizes from 1 to 20 GB, spread over agent types."""
    return tuple(
        Registration(
            name=f"model-{index:02}",
            backend=BackendType.VLLM if index % 5 == 4 else BackendType.LLAMA_CPP,
            vram_gb=1 + index * 19 / MODELS,
            port=9000 + index,
            slots=4,
            context_tokens=4096,
            agent_types=tuple(f"agent-{(index + step) % AGENTS}" for step in range(3)),
            source="file",
        )
        for index in range(MODELS)
    )


async def fill_fleet(fleet: FleetStore) -> None:
    """Register the models and publish one sample of each GPU and backend."""
    entries = registrations()
    await fleet.register(entries)
    for index in range(GPUS):
        share = 0.3 + 0.06 * index
        fields = {
            "name": "NVIDIA GeForce RTX 3090",
            "memory_total_mb": "24576",
            "memory_used_mb": f"{24576 * share:.0f}",
            "effective_utilization": f"{share:.6f}",
            "temperature_c": f"{50 + 2 * index}",
            "power_draw_w": "180.5",
        }
        pressure = "low" if share < 0.5 else "normal" if share < 0.7 else "high"
        level = {"pressure": pressure, "full": "0", "thermal": "normal"}
        await fleet.publish_gpu(GpuSample(f"bench/{index}", "boot", 1, 0, fields, level), ttl_s=3600)
    for index, entry in enumerate(entries):
        probe = {
            "residence": "resident",
            "gpu": f"bench/{index % GPUS}",
            "slots": "4",
            "context_tokens": "4096",
            "backend_running": str(index % 3),
            "backend_waiting": "0",
            "kv_use": "0.25",
            "probe_in_flight": "0",
        }
        await fleet.publish_backend(BackendSample(entry.name, "boot", 1, 0, probe))


def asked(number: int) -> JobRequest:
    """The request of one job: 50 queues by model name and 10 by agent type, in turn."""
    place = number % (MODELS + AGENTS)
    prompt = "word " * (10 + number % 50)
    if place < MODELS:
        return JobRequest(prompt=prompt, model=f"model-{place:02}", max_tokens=64 + number % 7)
    return JobRequest(prompt=prompt, agent_type=f"agent-{place - MODELS}", max_tokens=64 + number % 7)


async def fill_queues(jobs: JobStore, numbers: Iterable[int]) -> None:
    waiting = iter(numbers)

    async def submit() -> None:
        for number in waiting:
            job = new_job(asked(number), SETTINGS, new_job_id())
            await jobs.submit(job, bound=1_000_000)

    await asyncio.gather(*(submit() for _ in range(SUBMITTERS)))
