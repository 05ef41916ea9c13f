"""How to look at a llama.cpp server without disturbing it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import JsonValue

from shared.backends import exposition, llama_router
from shared.backends.errors import BackendError, Broken, Interrupted, NotSent, Rejected, Saturated
from shared.backends.fetch import Answer, Fetcher
from shared.backends.readings import Probe, Props
from shared.states import Residence

_SWITCHED_OFF = (404, 501)
_NOT_LOADED = 400
"""What a router answers when asked, with ``autoload=false``, about a model that has just gone."""


@dataclass(slots=True)
class _Look:
    """What was read so far."""

    props: Props | None
    residence: Residence = Residence.RESIDENT
    running: int | None = None
    waiting: int | None = None
    kv_use: float | None = None
    error: str | None = None


async def probe(fetcher: Fetcher, props: Props | None, model: str | None = None) -> Probe:
    """Read ``/health``, then ``/metrics``, and ``/props`` and ``/slots`` where they are due; never raises.

    A server that answers ``/health`` but is too slow for the rest stays resident, with unknown numbers. In
    router mode ``model`` says of which one; nothing that is read loads or wakes it.
    """
    look = _Look(props)
    simulated = False
    latency_ms: float | None = None
    try:
        simulated = (await fetcher.get("/health")).simulated
        latency_ms = fetcher.elapsed_ms
        await _look_inside(fetcher, look, model)
    except BackendError as error:
        look.error = str(error)
        if latency_ms is None or not isinstance(error, Interrupted):
            look.residence, look.props = _residence(error, look.props), None
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


def _residence(error: BackendError, props: Props | None) -> Residence:
    """What a failed read says of the server: while it loads, llama.cpp answers 503 everywhere."""
    if isinstance(error, NotSent) and error.type == "connect_refused":
        return Residence.UNLOADED
    if isinstance(error, Saturated):
        return Residence.LOADING
    if props is not None and props.router and error.status == _NOT_LOADED:
        return Residence.UNLOADED
    return Residence.FAILED


async def _look_inside(fetcher: Fetcher, look: _Look, model: str | None) -> None:
    """Only an idle server can fall asleep (``--sleep-idle-seconds``), so ``/props`` is read while nothing
    runs; ``/slots`` is read only while something runs, since it wakes a sleeper.
    """
    just_read = look.props is None and await _meet(fetcher, look, model)
    router = look.props if look.props is not None and look.props.router else None
    query = "" if router is None else await _ask_router(fetcher, look, router)
    if look.residence is not Residence.RESIDENT:
        return
    metrics = exposition.parse(await _optional(fetcher, f"/metrics{query}") or "")
    look.running = exposition.total(metrics, "llamacpp:requests_processing")
    look.waiting = exposition.total(metrics, "llamacpp:requests_deferred")
    if router is not None and router.slots is None:
        look.props = _props((await fetcher.get(f"/props{query}")).object(), router)
    elif router is None and not (just_read or look.running) and not await _awake(fetcher, look):
        return
    if look.running:
        look.kv_use = _kv_use(await _optional(fetcher, f"/slots{query}"))
    elif look.running == 0:
        look.kv_use = 0.0


async def _meet(fetcher: Fetcher, look: _Look, model: str | None) -> bool:
    """Find out what a server is that was just (re)connected; True if its own properties were read."""
    answer = (await fetcher.get("/props")).object()
    if llama_router.is_router(answer):
        look.props = Props(slots=None, context_tokens=None, upstream_name=model, router=True)
        return False
    _note_props(look, answer)
    return True


async def _ask_router(fetcher: Fetcher, look: _Look, router: Props) -> str:
    """Take the model's standing from its router; the answer is what further questions end with."""
    name = router.upstream_name or ""
    look.residence, look.error = llama_router.standing((await fetcher.get("/models")).object(), name)
    if look.residence not in (Residence.RESIDENT, Residence.SLEEPING):
        look.props = replace(router, slots=None, context_tokens=None)  # it may be loaded otherwise next time
    return llama_router.query(name)


async def _awake(fetcher: Fetcher, look: _Look) -> bool:
    """Read the properties; whether the server is awake."""
    _note_props(look, (await fetcher.get("/props")).object())
    return look.residence is Residence.RESIDENT


def _note_props(look: _Look, answer: Mapping[str, JsonValue]) -> None:
    look.props = _props(answer)
    if answer.get("is_sleeping") is True:
        look.residence = Residence.SLEEPING


async def _optional(fetcher: Fetcher, path: str) -> str | None:
    """The body, or None where the endpoint is switched off (``--no-slots``, no ``--metrics``)."""
    try:
        return (await fetcher.get(path)).text
    except (Broken, Rejected) as error:
        if error.status in _SWITCHED_OFF:
            return None
        raise


def _props(answer: Mapping[str, JsonValue], router: Props | None = None) -> Props:
    settings = answer.get("default_generation_settings")
    alias, path = answer.get("model_alias"), answer.get("model_path")
    name = alias or (re.split(r"[/\\]", path)[-1] if isinstance(path, str) else None)
    if router is not None:
        name = router.upstream_name  # what the router calls it, which may differ from the child's own alias
    return Props(
        slots=_count(answer.get("total_slots")),
        context_tokens=_count(settings.get("n_ctx")) if isinstance(settings, dict) else None,
        upstream_name=name if isinstance(name, str) and name else None,
        router=router is not None,
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
