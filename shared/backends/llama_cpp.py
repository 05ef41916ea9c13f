"""How to look at a llama.cpp server without disturbing it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from shared.backends import exposition
from shared.backends.errors import BackendError, Broken, Interrupted, NotSent, Rejected, Saturated
from shared.backends.fetch import Answer, Fetcher
from shared.backends.readings import Probe, Props
from shared.states import Residence

_SWITCHED_OFF = (404, 501)


@dataclass(slots=True)
class _Look:
    """What was read so far."""

    props: Props | None
    residence: Residence = Residence.RESIDENT
    running: int | None = None
    waiting: int | None = None
    kv_use: float | None = None
    error: str | None = None


async def probe(fetcher: Fetcher, props: Props | None) -> Probe:
    """Read ``/health``, then ``/metrics``, and ``/props`` and ``/slots`` where they are due; never raises.

    A server that answers ``/health`` but is too slow for the rest stays resident, with unknown numbers.
    """
    look = _Look(props)
    simulated = False
    latency_ms: float | None = None
    try:
        simulated = (await fetcher.get("/health")).simulated
        latency_ms = fetcher.elapsed_ms
        await _look_inside(fetcher, look)
    except BackendError as error:
        look.error = str(error)
        if latency_ms is None or not isinstance(error, Interrupted):
            look.residence, look.props = _residence(error), None
    return Probe(
        residence=look.residence,
        running=look.running,
        waiting=look.waiting,
        slots=look.props.slots if look.props else None,
        context_tokens=look.props.context_tokens if look.props else None,
        kv_use=look.kv_use,
        upstream_name=look.props.upstream_name if look.props else None,
        error=look.error,
        latency_ms=fetcher.elapsed_ms if latency_ms is None else latency_ms,
        simulated=simulated,
        props=look.props,
    )


def _residence(error: BackendError) -> Residence:
    """What a failed read says of the server: while it loads, llama.cpp answers 503 everywhere."""
    if isinstance(error, NotSent) and error.type == "connect_refused":
        return Residence.UNLOADED
    if isinstance(error, Saturated):
        return Residence.LOADING
    return Residence.FAILED


async def _look_inside(fetcher: Fetcher, look: _Look) -> None:
    """Only an idle server can fall asleep (``--sleep-idle-seconds``), so ``/props`` is read while nothing
    runs; ``/slots`` is read only while something runs, since it wakes a sleeper.
    """
    metrics = exposition.parse(await _optional(fetcher, "/metrics") or "")
    look.running = exposition.total(metrics, "llamacpp:requests_processing")
    look.waiting = exposition.total(metrics, "llamacpp:requests_deferred")
    if look.props is None or not look.running:
        answer = (await fetcher.get("/props")).object()
        look.props = _props(answer)
        if answer.get("is_sleeping") is True:
            look.residence = Residence.SLEEPING
            return
    if look.running:
        look.kv_use = _kv_use(await _optional(fetcher, "/slots"))
    elif look.running == 0:
        look.kv_use = 0.0


async def _optional(fetcher: Fetcher, path: str) -> str | None:
    """The body, or None where the endpoint is switched off (``--no-slots``, no ``--metrics``)."""
    try:
        return (await fetcher.get(path)).text
    except (Broken, Rejected) as error:
        if error.status in _SWITCHED_OFF:
            return None
        raise


def _props(answer: Mapping[str, JsonValue]) -> Props:
    settings = answer.get("default_generation_settings")
    alias, path = answer.get("model_alias"), answer.get("model_path")
    name = alias or (re.split(r"[/\\]", path)[-1] if isinstance(path, str) else None)
    return Props(
        slots=_count(answer.get("total_slots")),
        context_tokens=_count(settings.get("n_ctx")) if isinstance(settings, dict) else None,
        upstream_name=name if isinstance(name, str) and name else None,
    )


def _kv_use(body: str | None) -> float | None:
    """Tokens held by busy slots over the context of all slots, 0..1.

    llama.cpp has no KV gauge; a busy slot's ``n_prompt_tokens`` grows with what it generates. With
    ``--kv-unified`` every slot reports the whole context, which no field tells apart: the figure is then too
    low by the number of slots.
    """
    if body is None:
        return None
    slots = Answer(body, simulated=False).json()
    if not isinstance(slots, list):
        return None
    held = room = 0
    for slot in slots:
        if not isinstance(slot, dict):
            return None
        tokens = _count(slot.get("n_prompt_tokens")) if slot.get("is_processing") is True else 0
        context = _count(slot.get("n_ctx"))
        if tokens is None or context is None:
            return None
        held, room = held + tokens, room + context
    return min(1.0, held / room) if room else None


def _count(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
