"""Invariants of the decision model (section 8) over arbitrary snapshots."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from hypothesis import given
from hypothesis import strategies as st

from shared.decision.causes import Cause, Choice
from shared.decision.routing import decide, rank
from shared.decision.snapshot import Decision, Gpu, Model, Request, Snapshot
from shared.states import Action, Pressure, Thermal
from tests.unit.strategies import PROPERTY, WILD, plain_requests, requests, snapshots

PRESSURES = (Pressure.LOW, Pressure.NORMAL, Pressure.HIGH, Pressure.CRITICAL)
HEATS = (Thermal.NORMAL, Thermal.WARNING, Thermal.THROTTLING, Thermal.CRITICAL)
REMEDIES = (
    "it goes on when",
    "it is probed in",
    "it serves",
    "it is asked again in",
    "would fit",
    "it is tried again",
    "it is judged once",
    "name one of them",
    "ask for less",
)


def with_gpus(seen: Snapshot, change: dict[str, Gpu]) -> Snapshot:
    return replace(seen, gpus={**seen.gpus, **change})


@st.composite
def eased(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    """A snapshot and the same one with levels as they are or better on every GPU."""
    seen = draw(snapshots())
    better = {}
    for gpu in seen.gpus.values():
        pressure, full, thermal = gpu.pressure, gpu.full, gpu.thermal
        if pressure in PRESSURES:
            pressure = draw(st.sampled_from(PRESSURES[: PRESSURES.index(pressure) + 1]))
            full = full and pressure is Pressure.CRITICAL and draw(st.booleans())
        if thermal in HEATS:
            thermal = draw(st.sampled_from(HEATS[: HEATS.index(thermal) + 1]))
        better[gpu.id] = replace(gpu, pressure=pressure, full=full, thermal=thermal)
    return seen, with_gpus(seen, better)


@PROPERTY
@given(seen=snapshots(), request=requests())
def test_same_snapshot_and_request_give_the_same_decision_in_any_order_of_reading(
    seen: Snapshot, request: Request
) -> None:
    """Invariant 3: not even the order in which Redis lists models and GPUs matters."""
    names, ids = sorted(seen.models, reverse=True), sorted(seen.gpus, reverse=True)
    shuffled = replace(
        seen, models={name: seen.models[name] for name in names}, gpus={gpu: seen.gpus[gpu] for gpu in ids}
    )
    assert decide(seen, request) == decide(seen, request) == decide(shuffled, request)


@PROPERTY
@given(pair=eased(), request=plain_requests() | requests())
def test_adding_memory_or_cooling_never_turns_a_dispatch_into_a_hold(
    pair: tuple[Snapshot, Snapshot], request: Request
) -> None:
    """Invariant 4, and stronger: every candidate stays one and no limit falls.

    But for models that nobody probes: they give way as soon as one that is known to answer can go.
    """
    before, after = (decide(seen, request) for seen in pair)
    if before.action is Action.DISPATCH:
        assert after.action is Action.DISPATCH
        assert after.code == before.code or before.code == Choice.FALLBACK
    if after.code == before.code:
        lost = {name for name in before.parts if name not in after.parts}
        assert all(pair[0].models[name].unprobed for name in lost)
        kept = set(before.parts) - lost
        assert all(before.parts[name].limit <= after.parts[name].limit for name in kept)


@PROPERTY
@given(seen=snapshots(), wanted=st.lists(plain_requests(), min_size=4, max_size=12))
def test_dispatching_until_nothing_fits_never_exceeds_slots_or_gpu_limits(
    seen: Snapshot, wanted: list[Request]
) -> None:
    """Invariant 5: what was in flight above a limit before only drains, no decision adds to it."""
    for request in wanted:
        decision = decide(seen, request)
        model = decision.model
        if model is None:
            continue
        assert model.in_flight < decision.limit <= model.slots
        assert set(decision.gpu_limits) == set(model.gpus)
        for gpu_id, limit in decision.gpu_limits.items():
            gpu = seen.gpus.get(gpu_id) or Gpu(gpu_id)
            assert gpu.in_flight < limit <= max(1, _slots_on(seen, gpu_id))
        seen = _with_one_more(seen, model)


def _slots_on(seen: Snapshot, gpu_id: str) -> int:
    return sum(model.slots for model in seen.models.values() if gpu_id in model.gpus)


def _with_one_more(seen: Snapshot, model: Model) -> Snapshot:
    more = replace(model, in_flight=model.in_flight + 1)
    gpus = (seen.gpus.get(gpu_id) or Gpu(gpu_id) for gpu_id in model.gpus)
    return with_gpus(
        replace(seen, models={**seen.models, model.name: more}),
        {gpu.id: replace(gpu, in_flight=gpu.in_flight + 1) for gpu in gpus},
    )


@PROPERTY
@given(seen=snapshots(), request=requests())
def test_every_hold_and_reject_names_its_cause_and_what_would_change_it(
    seen: Snapshot, request: Request
) -> None:
    """Invariant 8; the models left out carry a known code and a sentence too."""
    decision = decide(seen, request)
    assert set(decision.parts).isdisjoint(decision.left_out)
    assert set(decision.parts) | set(decision.left_out) == set(seen.models)
    for out in decision.left_out.values():
        assert out.code in tuple(Cause)
        assert out.reason
    if decision.action is not Action.DISPATCH:
        assert decision.code in tuple(Cause)
        assert any(remedy in decision.reason for remedy in REMEDIES), decision.reason
        assert decision.model is None
        assert not decision.parts
    if decision.action is Action.HOLD and seen.models:
        assert any(
            decision.reason.startswith(f"{name} waits: {out.reason}") and out.code == decision.code
            for name, out in decision.left_out.items()
        )


@PROPERTY
@given(seen=snapshots(), request=requests())
def test_a_reject_stands_whatever_the_state_of_models_and_gpus(seen: Snapshot, request: Request) -> None:
    """What is rejected could not be served by idle models on idle GPUs either."""
    decision = decide(seen, request)
    idle = Snapshot(
        {
            name: Model(
                name=name,
                backend=model.backend,
                url=model.url,
                port=model.port,
                upstream_name=model.upstream_name,
                serves=model.serves,
                agent_types=model.agent_types,
                context_tokens=model.context_tokens,
                context_known=model.context_known,
            )
            for name, model in seen.models.items()
        },
        {},
    )
    if seen.models:
        assert (decision.action is Action.REJECT) == (decide(idle, request).action is Action.REJECT)


@PROPERTY
@given(seen=snapshots(), request=plain_requests(), data=st.data())
def test_a_missing_reading_never_allows_more_than_the_best_reading(
    seen: Snapshot, request: Request, data: st.DataObject
) -> None:
    """Invariant 9: unknown is at most as good as nothing in use and a cold, empty card."""
    unread_models, best_models = {}, {}
    for name, model in seen.models.items():
        keeps_kv, keeps_running, keeps_waiting = (data.draw(st.booleans()) for _ in range(3))
        kv, running, waiting = model.kv_use, model.backend_running, model.backend_waiting
        unread_models[name] = replace(
            model,
            kv_use=kv if keeps_kv else None,
            backend_running=running if keeps_running else None,
            backend_waiting=waiting if keeps_waiting else None,
        )
        best_models[name] = replace(
            model,
            kv_use=kv if keeps_kv else 0.0,
            backend_running=running if keeps_running else 0,
            backend_waiting=waiting if keeps_waiting else 0,
        )
    unread = {gpu_id: Gpu(gpu_id, in_flight=gpu.in_flight) for gpu_id, gpu in seen.gpus.items()}
    best = {
        gpu_id: replace(gpu, pressure=Pressure.LOW, thermal=Thermal.NORMAL) for gpu_id, gpu in unread.items()
    }
    unknown = decide(Snapshot(unread_models, unread, busy=seen.busy), request)
    known = decide(Snapshot(best_models, best, busy=seen.busy), request)
    assert set(unknown.parts) <= set(known.parts)
    assert all(part.limit <= known.parts[name].limit for name, part in unknown.parts.items())


@PROPERTY
@given(seen=snapshots(numbers=WILD), request=requests())
def test_every_number_of_a_decision_is_finite(seen: Snapshot, request: Request) -> None:
    """Invariant 10, for readings that are infinite, negative or no number at all."""
    decision = decide(seen, request)
    for part in decision.parts.values():
        assert all(math.isfinite(value) for value in asdict(part).values())
        assert part.score > 0
    for number in (decision.estimated_duration_ms, decision.retry_in_ms):
        assert number is None or math.isfinite(number)


@PROPERTY
@given(seen=snapshots(), request=requests())
def test_the_ranking_begins_with_the_model_that_is_chosen(seen: Snapshot, request: Request) -> None:
    ranked, decision = rank(seen, request), decide(seen, request)
    assert [entry.model for entry in ranked[:1]] == [decision.model][: len(ranked)]
    assert {entry.model.name: entry.part for entry in ranked} == _dispatched(decision)


def _dispatched(decision: Decision) -> dict[str, object]:
    return dict(decision.parts) if decision.action is Action.DISPATCH else {}
