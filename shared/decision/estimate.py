"""How long a request will take on a model, from what was learned, registered or tabled."""

from __future__ import annotations

from shared.decision.capacity import busy
from shared.decision.memory import LARGE_GB
from shared.decision.readings import finite
from shared.decision.snapshot import Model, Request

TINY_GB = 2.0
MEDIUM_GB = 8.0
TINY_SPEED, SMALL_SPEED, MEDIUM_SPEED, LARGE_SPEED = 200.0, 150.0, 100.0, 50.0
"""Tokens/s by size until learned: below 2 GB, below 8, up to 15, above (specification's table)."""

ENOUGH_SAMPLES = 5
"""Finished jobs of a model before its averages may keep a request from it."""

UNKNOWN_LENGTH = 512.0
"""Output tokens of an answer where the usual length is not known: the default of ``jobs.max_tokens``.

All of a request's own ``max_tokens`` would keep it from an idle model for ever: many clients ask for a
context's worth and get a page.
"""

_SLOWEST, _FASTEST = 0.01, 1e6
_LONGEST_S = 30 * 86_400.0
"""Bounds that keep every estimate finite whatever a reading says."""


def tabled_speed(vram_gb: float | None) -> float:
    """Output tokens/s of one request alone by model size in GB; unknown size counts as small."""
    if vram_gb is None:
        return SMALL_SPEED
    if vram_gb > LARGE_GB:
        return LARGE_SPEED
    if vram_gb >= MEDIUM_GB:
        return MEDIUM_SPEED
    return SMALL_SPEED if vram_gb >= TINY_GB else TINY_SPEED


def tokens_per_second(model: Model) -> float:
    """Output tokens/s: learned, else registered, else tabled by size; always positive and finite."""
    learned = finite(model.seconds_per_output_token)
    if learned is not None and learned > 0:
        speed = 1.0 / learned
    elif (registered := finite(model.tokens_per_second)) is not None and registered > 0:
        speed = registered
    else:
        speed = tabled_speed(finite(model.vram_gb))
    return min(max(speed, _SLOWEST), _FASTEST)


def service_s(model: Model, request: Request, output_tokens: float | None = None) -> float:
    """Seconds of prefill and output without waiting, for all of ``max_tokens`` unless told otherwise.

    Past answers say little about this one's length (they were cut by their own ``max_tokens``), so the bound
    that the caller gave is what counts. Prefill is 0 until learned.
    """
    prefill = max(0.0, finite(model.seconds_per_prompt_token) or 0.0) * max(0, request.prompt_tokens)
    output = max(0.0, request.max_tokens if output_tokens is None else output_tokens)
    return min(prefill + output / tokens_per_second(model), _LONGEST_S)


def wait_s(model: Model, request: Request) -> float:
    """Seconds until a slot of the backend is free, from what runs and waits there."""
    slots = max(1, model.slots)
    waiting = max(0, model.backend_waiting or 0)
    ahead = max(busy(model) + 1 - slots, waiting)
    if ahead <= 0:
        return 0.0
    # A backend that lets requests wait below its slots (a vLLM short of KV blocks) serves only what it runs.
    served = max(1, model.backend_running or 0) if waiting else slots
    latency_ms = finite(model.avg_latency_ms)
    each = latency_ms / 1000 if latency_ms is not None and latency_ms > 0 else service_s(model, request)
    return min(ahead / min(served, slots) * each, _LONGEST_S)


def duration_ms(model: Model, request: Request) -> float:
    """Milliseconds until an answer of ``max_tokens`` is complete: wait, prefill and output."""
    return 1000 * (wait_s(model, request) + service_s(model, request))


def likely_duration_ms(model: Model, request: Request) -> float:
    """As ``duration_ms``, but for an answer of this model's usual length where that is shorter.

    ``UNKNOWN_LENGTH`` stands for a usual length that is not known; no answer outgrows the context.
    The deadline filter stands on this one: an answer that is usually short must not be refused its chance.
    """
    usual = finite(model.avg_output_tokens)
    length = min(float(request.max_tokens), UNKNOWN_LENGTH if usual is None else usual)
    if model.context_known:
        length = min(length, float(max(0, model.context_tokens - request.prompt_tokens)))
    return 1000 * (wait_s(model, request) + service_s(model, request, length))
