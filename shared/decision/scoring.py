"""The score of routing: one product of factors per candidate, lower is better, and the order it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shared.decision.capacity import ModelRoom, worst_pressure
from shared.decision.estimate import service_s
from shared.decision.readings import finite
from shared.decision.snapshot import Model, Part, Request
from shared.states import BackendType, Mode, Pressure, Thermal

TIE = 1.05
"""Scores within 5 % of the lowest count as equal (decision model, section 4)."""

_SLOWEST_SPEED = 3.0
_FAILURE_WEIGHT = 4.0
_OTHER_AGENT = 1.5
_OTHER_MODE = 1.25
_VLLM_UNDER_STRESS = 2.0
_SIZE_SPAN = 0.3
_BATCH_PRIORITY = 2
_PRESSED = frozenset({Pressure.HIGH, Pressure.CRITICAL})
_HOT = frozenset({Thermal.THROTTLING, Thermal.CRITICAL})


def score(rooms: Sequence[ModelRoom], request: Request) -> dict[str, Part]:
    """The factors of every candidate, by name. All are positive and finite whatever the readings."""
    if not rooms:
        return {}
    if len(rooms) == 1:
        # Nothing to be compared with. Most requests name a model that one server has.
        (only,) = rooms
        mode = _mode(only, request, worst_pressure(only.gpus))
        return {only.model.name: _part(only, request, _load(only), 1.0, mode, 1.0)}
    times = [service_s(room.model, request) for room in rooms]
    best = min(times)
    pressures = [worst_pressure(room.gpus) for room in rooms]
    sizes = _size_factors(rooms, pressures)
    loads = [_load(room) for room in rooms]
    modes = _mode_factors(rooms, request, pressures, loads)
    return {
        room.model.name: _part(room, request, load, _relative(time, best), mode, size)
        for room, time, load, mode, size in zip(rooms, times, loads, modes, sizes, strict=True)
    }


def pick(rooms: Sequence[ModelRoom], parts: Mapping[str, Part]) -> ModelRoom:
    """The best of one or more candidates: the lowest score; within 5 % of it, by ``_tie_break``."""
    if len(rooms) == 1:
        return rooms[0]
    bound = min(part.score for part in parts.values()) * TIE
    return min((room for room in rooms if parts[room.model.name].score <= bound), key=_tie_break)


def order(rooms: Sequence[ModelRoom], parts: Mapping[str, Part]) -> tuple[ModelRoom, ...]:
    """Candidates best first, each the one that ``pick`` would take of those after it."""
    left = sorted((parts[room.model.name].score, _tie_break(room), room) for room in rooms)
    ranked = []
    while left:
        bound = left[0][0] * TIE
        tied = [index for index, entry in enumerate(left) if entry[0] <= bound]
        ranked.append(left.pop(min(tied, key=lambda index: left[index][1]))[2])
    return tuple(ranked)


def _tie_break(room: ModelRoom) -> tuple[float, float, str]:
    """KV headroom, then the cooler GPU, then the name; what is unknown comes after what is known."""
    use = finite(room.model.kv_use)
    heats = [finite(gpu.gpu.temperature_c) for gpu in room.gpus]
    known = [heat for heat in heats if heat is not None]
    hottest = max(known) if known and len(known) == len(heats) else math.inf
    return (1.0 if use is None else use), hottest, room.model.name


def _load(room: ModelRoom) -> float:
    return (room.busy + 1) / _limit(room)


def _limit(room: ModelRoom) -> int:
    return max(1, room.claim_limit)


def _part(room: ModelRoom, request: Request, load: float, speed: float, mode: float, size: float) -> Part:
    failures = 1 + _FAILURE_WEIGHT * _failure_share(room.model)
    affinity = _affinity(room.model, request)
    return Part(
        score=load * speed * failures * affinity * mode * size,
        load=load,
        speed=speed,
        failures=failures,
        affinity=affinity,
        mode=mode,
        size=size,
        busy=room.busy,
        limit=_limit(room),
    )


def _relative(time: float, best: float) -> float:
    if time <= 0 or best <= 0:
        return 1.0 if time <= best else _SLOWEST_SPEED
    return min(max(time / best, 1.0), _SLOWEST_SPEED)


def _failure_share(model: Model) -> float:
    share = finite(model.failure_ema)
    return 1.0 if share is None else min(max(share, 0.0), 1.0)


def _affinity(model: Model, request: Request) -> float:
    return 1.0 if request.agent_type is None or request.agent_type in model.agent_types else _OTHER_AGENT


def _mode_factors(
    rooms: Sequence[ModelRoom], request: Request, pressures: Sequence[Pressure], loads: Sequence[float]
) -> list[float]:
    """How little each one's kind of backend fits the request, 1 = fits.

    A llama.cpp has a handful of slots and a vLLM up to hundreds: with one request each they are at 1/4 and
    1/256, and load alone would outbid what each is for. So slots count within a kind; between the two, the
    least loaded one of the kind that fits less starts level with that of the kind that fits.
    """
    own = [_mode(room, request, pressure) for room, pressure in zip(rooms, pressures, strict=True)]
    backends = [room.model.backend for room in rooms]
    # How little a kind fits, and its least load where it fits best.
    kinds: dict[BackendType, tuple[float, float]] = {}
    for backend in set(backends):
        alike = zip(own, loads, backends, strict=True)
        kinds[backend] = min((mode, load) for mode, load, one in alike if one is backend)
    if len(kinds) < 2:
        return own
    fitting, other = sorted(kinds, key=kinds.__getitem__)
    levelling = max(1.0, kinds[fitting][1] / kinds[other][1])
    return [
        mode * levelling if backend is other else mode for backend, mode in zip(backends, own, strict=True)
    ]


def _mode(room: ModelRoom, request: Request, pressure: Pressure) -> float:
    vllm = room.model.backend is BackendType.VLLM
    if vllm and (
        request.prefer_llama_cpp or pressure in _PRESSED or any(gpu.gpu.thermal in _HOT for gpu in room.gpus)
    ):
        return _VLLM_UNDER_STRESS
    mode = request.mode or (Mode.BATCH if request.priority <= _BATCH_PRIORITY else Mode.INTERACTIVE)
    return 1.0 if vllm is (mode is Mode.BATCH) else _OTHER_MODE


def _size_factors(rooms: Sequence[ModelRoom], pressures: Sequence[Pressure]) -> list[float]:
    """1 to 1.3 by rank of size: larger first at low pressure, smaller first from high on, else 1.

    Ranked among the candidates of the same kind at the same level: a level of its own is no merit or fault,
    and which kind of backend takes the request is settled by its mode.
    """
    groups: dict[tuple[Pressure, BackendType], set[float]] = {}
    own = [
        ((pressure, room.model.backend), _size(room)) for room, pressure in zip(rooms, pressures, strict=True)
    ]
    for group, size in own:
        groups.setdefault(group, set()).add(size)
    ranks = {group: _ranks(sizes, group[0]) for group, sizes in groups.items()}
    return [ranks[group][size] for group, size in own]


def _ranks(sizes: set[float], pressure: Pressure) -> dict[float, float]:
    ascending = pressure in _PRESSED
    if len(sizes) == 1 or not (ascending or pressure is Pressure.LOW):
        return dict.fromkeys(sizes, 1.0)
    known = sorted(sizes - {math.inf}, reverse=not ascending)
    last = len(sizes) - 1
    ordered = [*known, math.inf] if math.inf in sizes else known
    return {size: 1 + _SIZE_SPAN * rank / last for rank, size in enumerate(ordered)}


def _size(room: ModelRoom) -> float:
    """GB of the model; unknown is infinite, which ranks last at every level."""
    size = finite(room.model.vram_gb)
    return math.inf if size is None else size
