"""Values for tests of the decision core: readable builders, and Hypothesis strategies for whole snapshots."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shared.decision.levels import LevelState, next_levels
from shared.decision.snapshot import Gpu, Model, Request, Snapshot
from shared.states import BackendType, Mode, Pressure, Residence, Thermal

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For tests over whole snapshots: enough to find what is wrong, and no limit of time on a busy machine."""

AGENTS = ("Chat", "MedicalQA", "Insurance")
GPUS = ("host/0", "host/1", "host/2")
MB = 1024.0

COLD = Gpu(
    id="host/0",
    pressure=Pressure.NORMAL,
    thermal=Thermal.NORMAL,
    level_seq=1,
    effective_utilization=0.6,
    memory_total_mb=24 * MB,
    memory_used_mb=14.4 * MB,
    temperature_c=49.0,
    power_draw_w=150.0,
    sample_age_ms=200.0,
)
"""A 24 GB card with nothing against it."""

PLAIN = Model(
    name="plain",
    backend=BackendType.LLAMA_CPP,
    url="http://127.0.0.1:8080",
    port=8080,
    upstream_name="plain",
    serves=("plain",),
    agent_types=("Chat",),
    vram_gb=6.5,
    context_tokens=4096,
    slots=4,
    gpus=("host/0",),
    residence=Residence.RESIDENT,
)
"""A resident 8B model on that card."""


def named(model: Model, name: str) -> Model:
    """The model under another name of its own."""
    return replace(model, name=name, upstream_name=name, serves=(name,))


TINY = replace(named(PLAIN, "tiny-llama-1b"), vram_gb=2.3, tokens_per_second=200.0)
MEDIX = replace(named(PLAIN, "bi-medix2"), agent_types=("Chat", "MedicalQA"))
OPENINS = replace(named(PLAIN, "openins-llama3-8b"), vram_gb=7.8, agent_types=("Chat", "Insurance"))


def snapshot(*models: Model, gpus: tuple[Gpu, ...] = (COLD,), busy: frozenset[str] = frozenset()) -> Snapshot:
    """A snapshot of these models and GPUs, by name and id."""
    return Snapshot({model.name: model for model in models}, {gpu.id: gpu for gpu in gpus}, busy=busy)


def read(
    state: LevelState,
    utilization: float | None = None,
    temperature: float | None = None,
    *,
    slowdown: bool = False,
    fresh: bool = True,
) -> LevelState:
    """The levels after one more sample."""
    return next_levels(
        state, utilization=utilization, temperature_c=temperature, thermal_slowdown=slowdown, fresh=fresh
    )


def after(*readings: tuple[float | None, float | None]) -> LevelState:
    """The levels after fresh samples of (utilisation, temperature) on a card never read before."""
    state = LevelState()
    for utilization, temperature in readings:
        state = read(state, utilization, temperature)
    return state


def _maybe(strategy: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | strategy


WILD = st.floats()
"""Any float at all: infinite, not a number, negative, huge and tiny ones included."""

_SHARES = st.floats(0, 1)
_PAUSES = st.sampled_from((0.0, 0.0, 0.0, 700.0, 1500.0))


@st.composite
def gpus_of(draw: st.DrawFn, gpu_id: str) -> Gpu:
    """A GPU in any state; ``full`` only where the pressure is critical."""
    pressure = draw(st.sampled_from((*Pressure, Pressure.CRITICAL)))
    return Gpu(
        id=gpu_id,
        pressure=pressure,
        full=pressure is Pressure.CRITICAL and draw(st.booleans()),
        thermal=draw(st.sampled_from(Thermal)),
        level_seq=draw(st.integers(0, 5)),
        effective_utilization=draw(_maybe(_SHARES)),
        memory_total_mb=draw(_maybe(st.floats(1, 200_000))),
        memory_used_mb=draw(_maybe(st.floats(0, 200_000))),
        temperature_c=draw(_maybe(st.floats(0, 120))),
        sample_age_ms=draw(_maybe(st.floats(0, 60_000))),
        in_flight=draw(st.integers(0, 4)),
    )


@st.composite
def models_of(draw: st.DrawFn, name: str, numbers: st.SearchStrategy[float]) -> Model:
    """A model whose measured figures come from ``numbers``; every third is in some trouble of its own."""
    count = st.integers(0, 6)
    model = Model(
        name=name,
        backend=draw(st.sampled_from(BackendType)),
        url="http://127.0.0.1:8080",
        port=8080,
        upstream_name=name,
        serves=(draw(st.sampled_from((name, "shared"))),),
        agent_types=draw(st.sampled_from(((), ("Chat",), AGENTS[:2], AGENTS))),
        vram_gb=draw(_maybe(numbers)),
        tokens_per_second=draw(_maybe(numbers)),
        context_tokens=draw(st.sampled_from((8192, 8192, 8192, 4096, 2048))),
        context_known=draw(st.sampled_from((True, True, True, False))),
        slots=draw(st.integers(1, 8)),
        gpus=draw(st.sampled_from((*((gpu_id,) for gpu_id in GPUS), GPUS[:2], ()))),
        residence=Residence.RESIDENT,
        in_flight=draw(st.integers(0, 2)),
        samples=draw(st.integers(0, 10)),
        avg_latency_ms=draw(_maybe(numbers)),
        seconds_per_prompt_token=draw(_maybe(numbers)),
        seconds_per_output_token=draw(_maybe(numbers)),
        avg_output_tokens=draw(_maybe(numbers)),
        failure_ema=draw(numbers),
    )
    if draw(st.integers(0, 2)) < 2:
        return model
    return replace(
        model,
        residence=draw(st.sampled_from((*Residence, *[Residence.RESIDENT] * 12))),
        backend_running=draw(st.none() | count),
        backend_waiting=draw(st.none() | count),
        probe_in_flight=draw(st.none() | count),
        kv_use=draw(_maybe(numbers)),
        failure_count=draw(count),
        breaker_open_for_ms=draw(_PAUSES),
        breaker_half_open=draw(st.booleans()),
        saturated_for_ms=draw(_PAUSES),
        name_unknown_for_ms=draw(_PAUSES),
        unprobed=draw(st.booleans()),
        unprobed_ms=draw(_maybe(numbers)),
    )


@st.composite
def snapshots(draw: st.DrawFn, numbers: st.SearchStrategy[float] = _SHARES) -> Snapshot:
    """Up to four models on up to three GPUs, some of which may have no state of their own."""
    names = [f"m{index}" for index in range(draw(st.sampled_from((2, 3, 4, 1, 0))))]
    models = {name: draw(models_of(name, numbers)) for name in names}
    known = draw(st.sampled_from((GPUS, GPUS, GPUS[:2], ())))
    gpus = {gpu_id: draw(gpus_of(gpu_id)) for gpu_id in known}
    busy = draw(st.frozensets(st.sampled_from(names), max_size=1)) if names else frozenset[str]()
    return Snapshot(models, gpus, busy=busy)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request for a model that may exist, an agent type that may exist, or anything."""
    return Request(
        model=draw(st.sampled_from((None, None, None, None, "shared", "shared", "m0", "m1", "nobody"))),
        agent_type=draw(st.sampled_from((None, None, None, *AGENTS, *AGENTS, "Nonsense"))),
        prompt_tokens=draw(st.integers(0, 10**7)),
        max_tokens=draw(st.integers(1, 10**6)),
        min_context_tokens=draw(st.sampled_from((0, 0, 0, 2048, 4096, 8192, 16384))),
        prefer_llama_cpp=draw(st.booleans()),
        priority=draw(st.integers(0, 9)),
        mode=draw(st.none() | st.sampled_from(Mode)),
        fallback=draw(st.booleans()),
        deadline_in_ms=draw(_maybe(st.floats(-1e4, 1e6))),
    )


def plain_requests() -> st.SearchStrategy[Request]:
    """Requests that any model may take as far as name, type and context go: what decides is its state."""
    return requests().map(
        lambda request: replace(
            request, model=None, agent_type=None, min_context_tokens=0, deadline_in_ms=None
        )
    )
