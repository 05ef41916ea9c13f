"""GPUs, models, queue and services as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.cli.blocks import Block, Cell, Note, Table, Tone, columns, row
from services.cli.client import Json
from services.cli.wording import UNKNOWN, degrees, percent, shown, span, toned


def status_blocks(status: Json) -> list[Block]:
    """The whole of GET /v1/gpu/status."""
    blocks: list[Block] = []
    if status["simulated"]:
        blocks.append(Note(Cell(f"SIMULATED, not real: {_simulated(status)}", Tone.WARNING)))
    gpus = status["gpus"] or [status["gpu"]]
    blocks += [gpu_table(gpus), *_notes(gpus), model_table(status["models"])]
    return [*blocks, *_queue(status["queue"]), _services(status["services"])]


def _simulated(status: Json) -> str:
    gpus = [f"the GPU {gpu['gpu']}" for gpu in status["gpus"] if gpu["source"] == "simulated"]
    return ", ".join(gpus + [f"the model {name}" for name, it in status["models"].items() if it["simulated"]])


def gpu_table(gpus: Sequence[Json]) -> Table:
    rows = (
        row(
            shown(gpu["gpu"]),
            _memory(gpu),
            percent(gpu["utilization_percent"]),
            percent(gpu["gpu_utilization_percent"]),
            degrees(gpu["temperature_c"]),
            _power(gpu),
            toned(gpu["pressure"]),
            toned(gpu["thermal"]),
            shown(gpu["in_flight"]),
            Cell(span(gpu["sample_age_ms"]), Tone.WARNING if gpu["stale"] else Tone.PLAIN),
            gpu["name"] or "",
        )
        for gpu in gpus
    )
    names = columns(
        "GPU", "MEMORY>", "USED>", "COMPUTE>?", "HEAT>", "POWER>?", "PRESSURE", "THERMAL", "RUNNING>",
        "SAMPLE AGE>?", "NAME?",
    )  # fmt: skip
    return Table(names, tuple(rows), empty="no GPU is known")


def model_table(models: Mapping[str, Json]) -> Table:
    rows = (
        row(
            f"{name} (simulated)" if model["simulated"] else name,
            toned(model["residence"]),
            shown(model["gpu"]),
            shown(model["vram_gb"]),
            f"{model['in_flight']}/{shown(model['slots'])}",
            str(model["queue_size"]),
            span(model["avg_latency_ms"]),
            Cell(str(model["failure_count"]), Tone.BAD if model["failure_count"] else Tone.PLAIN),
            toned(model["breaker"]["state"]),
            model["backend"],
            ", ".join(model["agent_types"]) or UNKNOWN,
            Cell(model["probe_error"] or model["last_error"] or "", Tone.BAD),
        )
        for name, model in models.items()
    )
    names = columns(
        "MODEL", "STATE", "GPU", "GB>?", "BUSY>", "QUEUE>", "LATENCY>", "FAILURES>?", "BREAKER?", "BACKEND?",
        "AGENTS?", "LAST ERROR~",
    )  # fmt: skip
    return Table(names, tuple(rows), empty="no model is registered")


def _memory(gpu: Json) -> str:
    used, total = gpu["memory_used_gb"], gpu["memory_total_gb"]
    return UNKNOWN if used is None or total is None else f"{used:.1f}/{total:.1f} GB"


def _power(gpu: Json) -> str:
    return UNKNOWN if gpu["power_draw_w"] is None else f"{gpu['power_draw_w']:.0f} W"


def _notes(gpus: Sequence[Json]) -> list[Note]:
    return [
        Note(Cell(f"{gpu['gpu'] or 'GPU'}: {gpu['detail']}", Tone.WARNING)) for gpu in gpus if gpu["detail"]
    ]


def _queue(queue: Json) -> list[Block]:
    total = Note(Cell(f"{queue['waiting']} jobs wait (at most {queue['bound']}), {queue['running']} run"))
    if not queue["targets"]:
        return [total]
    rows = (
        row(name, str(target["waiting"]), (target["hold"] or {}).get("reason") or "")
        for name, target in queue["targets"].items()
    )
    return [total, Table(columns("QUEUE", "WAITING>", "HELD BECAUSE~"), tuple(rows))]


def _services(services: Sequence[Json]) -> Table:
    rows = (
        row(
            service["instance"],
            service["service"],
            Cell("alive", Tone.GOOD) if service["alive"] else Cell("silent", Tone.BAD),
            f"{span(service['age_ms'])} ago",
            service["address"],
            service["version"],
        )
        for service in services
    )
    names = columns("SERVICE", "KIND", "STATE", "HEARD>", "ADDRESS?", "VERSION?")
    return Table(names, tuple(rows), empty="no service has been heard of")
