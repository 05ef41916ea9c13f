"""``GET /metrics`` of the simulated vLLM: the names, labels and buckets of version 0.32 that matter here."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.simulator.vllm_engine import Engine

_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_BETWEEN_TOKENS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


class Histogram:
    """A Prometheus histogram; ``bounds`` are the upper ends of its buckets, rising."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, labels: Mapping[str, str]) -> list[str]:
        """Its series: cumulative buckets, count and sum."""
        lines, below = [], 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            below += count
            edge = "+Inf" if bound == math.inf else str(float(bound))
            lines.append(_line(f"{name}_bucket", {**labels, "le": edge}, below))
        return [*lines, _line(f"{name}_count", labels, below), _line(f"{name}_sum", labels, self._sum)]


@dataclass(slots=True)
class Finished:
    """One request that ended, in seconds since it came; ``first_token_s`` is None if it wrote nothing."""

    reason: str
    prompt_tokens: int
    output_tokens: int
    queued_s: float
    first_token_s: float | None
    total_s: float


@dataclass(slots=True)
class Measurements:
    """What one server process has counted since it started."""

    context_tokens: int
    prompt_tokens: int = 0
    generation_tokens: int = 0
    rejections: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Histogram] = field(init=False)

    def __post_init__(self) -> None:
        tokens = _token_bounds(self.context_tokens)
        self.histograms = {
            "request_prompt_tokens": Histogram(tokens),
            "request_generation_tokens": Histogram(tokens),
            "time_to_first_token_seconds": Histogram(_FIRST_TOKEN_S),
            "inter_token_latency_seconds": Histogram(_BETWEEN_TOKENS_S),
            "e2e_request_latency_seconds": Histogram(_REQUEST_S),
            "request_queue_time_seconds": Histogram(_REQUEST_S),
        }

    def finish(self, request: Finished) -> None:
        """Count a request that ended, also one that the engine aborted."""
        self.finished[request.reason] += 1
        seen = self.histograms
        seen["request_prompt_tokens"].observe(request.prompt_tokens)
        seen["request_generation_tokens"].observe(request.output_tokens)
        seen["request_queue_time_seconds"].observe(request.queued_s)
        seen["e2e_request_latency_seconds"].observe(request.total_s)
        if request.first_token_s is not None:
            seen["time_to_first_token_seconds"].observe(request.first_token_s)
            further = request.output_tokens - 1
            if further > 0:
                each = (request.total_s - request.first_token_s) / further
                seen["inter_token_latency_seconds"].observe(each, further)


def metrics(name: str, engine: Engine, measured: Measurements) -> str:
    """The exposition of one server with one engine."""
    model = {"model_name": name}
    labels = {"engine": "0", **model}
    gauges = engine.gauges
    lines = [
        "# simulated: nothing of this was measured on a GPU",
        _line("num_requests_running", labels, gauges.running),
        _line("num_requests_waiting", labels, gauges.waiting),
        _line("num_requests_waiting_by_reason", {**labels, "reason": "capacity"}, gauges.waiting),
        _line("num_requests_waiting_by_reason", {**labels, "reason": "deferred"}, 0),
        *(_line("engine_sleep_state", {**labels, "sleep_state": s}, v) for s, v in _sleep_states(engine)),
        _line("kv_cache_usage_perc", labels, gauges.kv_use),
        _line("num_preemptions_total", labels, engine.preemptions),
        _line("prompt_tokens_total", labels, measured.prompt_tokens),
        _line("generation_tokens_total", labels, measured.generation_tokens),
        _line("prefix_cache_queries_total", labels, measured.prompt_tokens),
        _line("prefix_cache_hits_total", labels, 0),
        *(
            _line("request_success_total", {**labels, "finished_reason": reason}, measured.finished[reason])
            for reason in FINISH_REASONS
        ),
        _line("admission_rejections_total", {**model, "reason": "max_num_queued_reqs"}, measured.rejections),
        _line("admission_rejections_total", {**model, "reason": "max_num_queued_tokens"}, 0),
    ]
    for histogram, seen in measured.histograms.items():
        lines += seen.lines(histogram, labels)
    return "\n".join([*lines, _cache_config(engine)]) + "\n"


def _sleep_states(engine: Engine) -> list[tuple[str, int]]:
    """At level 0, where only the scheduler is held, none of the three is set (seen)."""
    now = _SLEEP_STATES[0] if engine.sleep_level is None else ("", *_SLEEP_STATES[1:])[engine.sleep_level]
    return [(state, int(state == now)) for state in _SLEEP_STATES]


def _cache_config(engine: Engine) -> str:
    limits = engine.limits
    config = {
        "block_size": str(limits.block_size),
        "cache_dtype": "auto",
        "enable_prefix_caching": "False",
        "engine": "0",
        "gpu_memory_utilization": "0.92",
        "kv_cache_size_tokens": str(limits.num_blocks * limits.block_size),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(limits.num_blocks),
        "num_gpu_blocks_override": "None",
    }
    return _line("cache_config_info", config, 1)


def _token_bounds(context_tokens: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to the length of the context."""
    steps = (base * 10**power for power in range(12) for base in (1, 2, 5))
    return tuple(float(step) for step in steps if step <= context_tokens)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    return f"vllm:{name}{{{shown}}} {float(value)}"
