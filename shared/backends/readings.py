"""What a probe of a backend says."""

from __future__ import annotations

from dataclasses import dataclass

from shared.states import Residence


@dataclass(frozen=True, slots=True)
class Props:
    """What does not change while a server runs; read when it was (re)connected, then handed to each probe.

    ``router``: it is a llama.cpp in router mode, and the rest is of one of its models, once that is loaded.
    ``pausable``: it may tell whether it is paused (vLLM in its development mode).
    """

    slots: int | None
    context_tokens: int | None
    upstream_name: str | None
    router: bool = False
    pausable: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at a backend; None = unknown, never zero.

    ``running`` and ``waiting`` count requests inside the backend, also those of others. ``context_tokens`` is
    what one request may use. ``kv_use`` is 0..1. ``latency_ms`` is the time to the answer of ``/health`` (or
    to its failure). ``props`` is to be handed to the next probe, None if they must be read again.
    """

    residence: Residence
    running: int | None
    waiting: int | None
    slots: int | None
    context_tokens: int | None
    kv_use: float | None
    upstream_name: str | None
    error: str | None
    latency_ms: float
    simulated: bool
    props: Props | None
