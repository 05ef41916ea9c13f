"""Values for tests of loading: cards with models on them, and strategies for whole snapshots of both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from shared.decision.snapshot import Backlog, Gpu, Model, Snapshot
from shared.states import BackendType, Pressure, Residence, Thermal
from tests.unit.strategies import COLD, MB, PLAIN, named

CARDS = ("host/0", "host/1")
_LEVELS = ((0.5, Pressure.LOW), (0.7, Pressure.NORMAL), (0.85, Pressure.HIGH), (9.0, Pressure.CRITICAL))


def idle(name: str, gigabytes: float, **changes: Any) -> Model:
    """A resident model on the first card that is known to be idle and was used once in 6 h."""
    model = replace(named(PLAIN, name), vram_gb=gigabytes, backend_running=0, rate_6h=1 / 21_600)
    return replace(model, **{"loadable_on": model.gpus, **changes})


def away(name: str, gigabytes: float, **changes: Any) -> Model:
    """An unloaded model that may go to the first card."""
    return idle(name, gigabytes, residence=Residence.UNLOADED, gpus=(), loadable_on=("host/0",), **changes)


def card(used_gb: float, total_gb: float = 24.0, **changes: Any) -> Gpu:
    """A fresh reading with this much in use, and the level that goes with it."""
    share = used_gb / total_gb
    gpu = replace(
        COLD,
        memory_total_mb=total_gb * MB,
        memory_used_mb=used_gb * MB,
        effective_utilization=share,
        pressure=next(level for bound, level in _LEVELS if share < bound),
        full=share >= 0.95,
    )
    return replace(gpu, **changes)


_RESIDENT, _UNLOADED = Residence.RESIDENT, Residence.UNLOADED


@st.composite
def _models(draw: st.DrawFn, name: str, rough: bool) -> Model:
    here = draw(st.sampled_from(CARDS[:1] * 3 + CARDS[1:]))
    states = tuple(Residence) if rough else (*[_RESIDENT] * 4, *[_UNLOADED] * 3, Residence.SLEEPING)
    state = draw(st.sampled_from(states))
    absent = state in (Residence.UNLOADED, Residence.SLEEPING)
    return idle(
        name,
        draw(st.sampled_from((1.0, 2.3, 4.0, 6.5, 7.8, 11.0, 16.0, 20.0))),
        backend=draw(st.sampled_from((*[BackendType.LLAMA_CPP] * 4, BackendType.VLLM))),
        residence=state,
        gpus=() if absent else (here,),
        loadable_on=draw(st.sampled_from((CARDS, CARDS[:1], CARDS[:1], (here,), ()))),
        pin=draw(st.integers(0, 5)) == 5,
        in_flight=draw(st.sampled_from((0, 0, 0, 0, 0, 1))),
        backend_running=draw(st.sampled_from((0, 0, 0, 0, 0, 1, None))),
        footprint_mb=draw(st.none() | st.floats(500, 24_000)),
        footprint_error_mb=draw(st.none() | st.floats(0, 2000)),
        rate_6h=draw(st.none() | st.floats(0, 2)),
        rate_10min=draw(st.none() | st.floats(0, 2)),
        load_seconds=draw(st.none() | st.floats(0.1, 200)),
        idle_s=draw(st.none() | st.floats(0, 5000)),
        ttl_s=draw(st.sampled_from((None, None, 60.0))),
        loaded_ago_s=draw(st.none() | st.floats(0, 20)),
        load_gain=draw(st.none() | st.floats(0, 500)),
    )


@st.composite
def _cards(draw: st.DrawFn, gpu_id: str, models: tuple[Model, ...], rough: bool) -> Gpu:
    """A card that holds its resident models and something foreign; a rough one is read badly, or not."""
    total = draw(st.sampled_from((24.0, 24.0, 12.0, 48.0)))
    ours = sum(
        (model.footprint_mb or (model.vram_gb or 0.0) * MB) / MB
        for model in models
        if model.residence is _RESIDENT and model.gpus == (gpu_id,)
    )
    used = draw(st.floats(0, 1)) * total if rough else min(total, ours + draw(st.floats(0.1, 0.5)) * total)
    return card(
        used,
        total,
        id=gpu_id,
        thermal=draw(st.sampled_from(Thermal if rough else (*[Thermal.NORMAL] * 6, Thermal.CRITICAL))),
        sample_age_ms=draw(st.sampled_from((100.0, 3100.0, None))) if rough else 100.0,
        reserve_gb=draw(st.sampled_from((None, 0.0, 8.0, 12.0))),
    )


@st.composite
def fleets(draw: st.DrawFn) -> Snapshot:
    """Up to six models on two cards, with queues; in one of four anything may be wrong or unknown."""
    rough = draw(st.integers(0, 3)) == 3
    names = [f"m{index}" for index in range(draw(st.integers(2, 6)))]
    models = {name: draw(_models(name, rough)) for name in names}
    gpus = {gpu_id: draw(_cards(gpu_id, tuple(models.values()), rough)) for gpu_id in CARDS}
    queues = draw(st.lists(st.sampled_from((*names, "auto:Chat", "auto:*")), unique=True, max_size=4))
    some = st.none() | st.floats(0, 1000)
    backlogs = tuple(Backlog(target, draw(st.integers(0, 50)), draw(some), draw(some)) for target in queues)
    return Snapshot(models, gpus, backlogs=backlogs)
