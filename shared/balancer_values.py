"""What the in-process balancer says, and how its models look to the decision core."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from shared.decision.snapshot import Decision, LeftOut, Model, Part
from shared.registry import Registration
from shared.states import Action, BackendType, Residence
from shared.track_record import TrackRecord

HOST = "localhost"
"""The host part of GPU ids in process: ``localhost/0`` is the first card of this machine."""
DEFAULT_CONTEXT_TOKENS = 2048
"""Context of a model registered without one (decision model, section 1)."""


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """Where a request should go, or why it should wait (``hold``) or never can (``reject``).

    Unless ``action`` is ``dispatch``, ``model_name``, ``port``, ``backend`` and ``url`` are None and
    ``estimated_duration_ms`` is NaN: unknown, and still a number to a format string. ``code`` is stable,
    ``parts`` holds the score of every candidate and ``left_out`` why each other model was not one.
    ``retry_in_ms`` estimates when asking again makes sense, None if nothing tells.
    """

    model_name: str | None
    port: int | None
    backend: BackendType | None
    reason: str
    estimated_duration_ms: float
    action: Action
    code: str
    url: str | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    retry_in_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One registered model. ``avg_latency_ms`` is None before the first answer.

    ``queue_size`` counts the requests in flight beyond its slots, which wait inside its server.
    """

    vram_gb: float | None
    backend: BackendType
    port: int | None
    avg_latency_ms: float | None
    queue_size: int
    in_flight: int
    failure_count: int
    breaker_open: bool


@dataclass(slots=True)
class Usage:
    """What a caller may fill in while its request runs, so that speeds are learned; None = not told."""

    output_tokens: int | None = None
    prompt_tokens: int | None = None
    first_token_ms: float | None = None


def routing_of(decision: Decision) -> RoutingDecision:
    """The core's decision with the chosen model's address in plain sight."""
    model, estimate = decision.model, decision.estimated_duration_ms
    return RoutingDecision(
        model_name=None if model is None else model.name,
        port=None if model is None else model.port,
        backend=None if model is None else model.backend,
        url=None if model is None else model.url,
        reason=decision.reason,
        estimated_duration_ms=math.nan if estimate is None else estimate,
        action=decision.action,
        code=str(decision.code),
        parts=decision.parts,
        left_out=decision.left_out,
        retry_in_ms=decision.retry_in_ms,
    )


def model_of(entry: Registration, record: TrackRecord, gpus: tuple[str, ...], now_s: float) -> Model:
    """A registered model, which counts as resident, with what was learned of it."""
    open_s = 0.0 if record.open_until_s is None else max(0.0, record.open_until_s - now_s)
    return Model(
        name=entry.name,
        backend=entry.backend or BackendType.LLAMA_CPP,
        url=entry.base_url("127.0.0.1"),
        port=entry.port,
        upstream_name=entry.upstream_name or entry.name,
        serves=entry.served_names,
        agent_types=entry.agent_types,
        vram_gb=entry.vram_gb,
        tokens_per_second=entry.tokens_per_second,
        pin=entry.pin,
        context_tokens=entry.context_tokens or DEFAULT_CONTEXT_TOKENS,
        slots=entry.slots or 1,
        gpus=gpus,
        residence=Residence.RESIDENT,
        in_flight=record.in_flight,
        samples=record.samples,
        avg_latency_ms=record.avg_latency_ms,
        seconds_per_prompt_token=record.seconds_per_prompt_token,
        seconds_per_output_token=record.seconds_per_output_token,
        avg_output_tokens=record.avg_output_tokens,
        failure_count=record.failure_count,
        failure_ema=record.failure_ema(now_s),
        breaker_open_for_ms=1000 * open_s,
        breaker_half_open=record.open_until_s is not None and open_s <= 0,
    )


def status_of(model: Model) -> ModelStatus:
    """The figures of the specification's status, of one model."""
    return ModelStatus(
        vram_gb=model.vram_gb,
        backend=model.backend,
        port=model.port,
        avg_latency_ms=model.avg_latency_ms,
        queue_size=max(0, model.in_flight - model.slots),
        in_flight=model.in_flight,
        failure_count=model.failure_count,
        breaker_open=model.breaker_open_for_ms > 0 or model.breaker_half_open,
    )


def is_here(entry: Registration) -> bool:
    """Whether the model's server runs on this machine, as far as its registration says."""
    if entry.host is not None or entry.url is None:
        return entry.host in (None, HOST)
    address = (urlsplit(entry.url).hostname or "").lower()
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
