"""What all our services cost while nothing happens: one (fake) GPU, three backends, no jobs."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.gateway_parts.figures import MB
from benchmarks.gateway_parts.ours import SERVICES, await_resident, configured, registration, start_service
from benchmarks.gateway_parts.processes import free_ports, pinned, usage
from benchmarks.monitor import gpu_section
from benchmarks.pipeline_parts.contestants import Place
from benchmarks.pipeline_parts.figures import IdleCost
from shared.process import ChildProcess

NAMES = ("alpha", "beta", "gamma")
WARM_UP_S = 5.0


def idle_cost(place: Place, seconds: float, warm_up_s: float = WARM_UP_S) -> tuple[str, dict[str, IdleCost]]:
    """What the GPU was, and by service the share of a core and the memory over ``seconds``."""
    with ExitStack() as stack:
        here = place.emptied(stack)
        directory = here.bench.directory / "idle"
        directory.mkdir()
        gpu, cards, source = gpu_section(directory)
        models = [registration(name, _backend(here, name)) for name in NAMES]
        port, environ = configured(directory, here.redis.local_url, models, gpu)
        parts: dict[str, ChildProcess] = {"redis": here.redis}
        for service in SERVICES:
            parts[service] = start_service(here.bench, service, f"idle-{service}", {**environ, **cards})
        await_resident(port, parts)
        time.sleep(warm_up_s)
        before, began = {part: usage(process) for part, process in parts.items()}, time.monotonic()
        time.sleep(seconds)
        after, wall_s = {part: usage(process) for part, process in parts.items()}, time.monotonic() - began
    return source, {
        part: IdleCost((after[part].cpu_s - before[part].cpu_s) / wall_s, after[part].rss_bytes / MB)
        for part in parts
    }


def _backend(place: Place, name: str) -> int:
    """The port of one more stand-in for a llama.cpp."""
    bench = place.bench
    (port,) = free_ports(1)
    process = ChildProcess(name, [bench.stub.argv[0], str(port)], bench.directory / f"{name}.out")
    bench.exit.callback(process.stop, 5.0)
    with pinned(bench.cores.stub):
        process.launch()
    return port
