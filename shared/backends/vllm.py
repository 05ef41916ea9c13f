"""How to look at a vLLM server: its queue, its KV cache, and whether it sleeps, is paused or is dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from pydantic import JsonValue

from shared.backends import exposition
from shared.backends.errors import BackendError, Interrupted, NotSent, Rejected
from shared.backends.fetch import Fetcher
from shared.backends.readings import Probe, Props
from shared.states import Residence

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""0..1 despite the names, one series an engine; renamed by vLLM's pull request 18354."""
_SLEEP_STATE = "vllm:engine_sleep_state"
_CACHE_CONFIG = "vllm:cache_config_info"
_PROMPT_TOKENS = "vllm:request_prompt_tokens"
_OUTPUT_TOKENS = "vllm:request_generation_tokens"
_SUMS = tuple(f"{name}_{part}" for name in (_PROMPT_TOKENS, _OUTPUT_TOKENS) for part in ("sum", "count"))
_NEEDED = tuple(
    f"{name}{after}"
    for name in (_RUNNING, _WAITING, *_KV_USE, _SLEEP_STATE, _CACHE_CONFIG, *_SUMS)
    for after in ("{", " ")
)
_MOST_SLOTS = 256

ASLEEP = "asleep: what is sent to it hangs until it is woken (POST /wake_up)"
PAUSED = "paused: what is sent to it hangs until it is resumed (POST /resume)"


@dataclass(slots=True)
class _Look:
    """What was read so far."""

    props: Props | None
    residence: Residence = Residence.RESIDENT
    metrics: list[exposition.Sample] = field(default_factory=list)
    load: int | None = None
    error: str | None = None


async def probe(fetcher: Fetcher, props: Props | None) -> Probe:
    """Read ``/health``, then ``/metrics``, ``/load``, and ``/is_paused`` where it answers; never raises.

    Nothing here wakes a sleeper. The last one exists with ``VLLM_SERVER_DEV_MODE=1`` only, and without it
    nobody can put the server to sleep or pause it over HTTP either. The port opens only once the server is
    ready; a 503 from ``/health`` is a dead engine. A server that answers ``/health`` but is too slow for the
    rest stays resident, with unknown numbers. Asleep or paused, its gauges keep their last values, so they
    count as unknown.
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
    known = look.metrics if look.residence is Residence.RESIDENT else []
    running = exposition.total(known, _RUNNING)
    kv_use = exposition.values(known, *_KV_USE)
    return Probe(
        residence=look.residence,
        running=running,
        waiting=_waiting(exposition.total(known, _WAITING), running, look.load),
        slots=_slots(known),
        context_tokens=look.props.context_tokens if look.props else None,
        kv_use=fmean(kv_use) if kv_use else None,
        upstream_name=look.props.upstream_name if look.props else None,
        error=look.error,
        latency_ms=fetcher.elapsed_ms if latency_ms is None else latency_ms,
        simulated=simulated,
        props=look.props,
    )


async def _look_inside(fetcher: Fetcher, look: _Look) -> None:
    """The engine itself is asked last: a stuck one lets ``/is_paused`` hang, when all else is known."""
    text = (await fetcher.get("/metrics")).text
    # 53 KB, of which some 15 lines are looked at.
    look.metrics = exposition.parse("\n".join(line for line in text.splitlines() if line.startswith(_NEEDED)))
    if look.props is None:
        look.props = _props((await fetcher.get("/v1/models")).object().get("data"))
    look.load = _count((await _optional(fetcher, "/load") or {}).get("server_load"))
    asleep = _asleep(look.metrics)
    if asleep is None and look.props.pausable:
        asleep = (await _optional(fetcher, "/is_sleeping") or {}).get("is_sleeping") is True
    if asleep:
        look.residence, look.error = Residence.SLEEPING, ASLEEP
    elif look.props.pausable:
        # True of a sleeper, too (and /is_sleeping of a paused one): the metric has told them apart.
        paused = await _optional(fetcher, "/is_paused")
        if paused is None:
            look.props = replace(look.props, pausable=False)
        elif paused.get("is_paused") is True:
            look.residence, look.error = Residence.DRAINING, PAUSED


def _asleep(metrics: Sequence[exposition.Sample]) -> bool | None:
    """Whether an engine has given memory back; None where this version does not tell.

    At sleep level 0 none of the states is set: only the scheduler is held then, as in a pause.
    """
    states = [(labels, value) for name, labels, value in metrics if name == _SLEEP_STATE]
    return any(value for labels, value in states if 'sleep_state="awake"' not in labels) if states else None


async def _optional(fetcher: Fetcher, path: str) -> dict[str, JsonValue] | None:
    """The object, or None where this server has no such endpoint."""
    try:
        return dict((await fetcher.get(path)).object())
    except Rejected as error:
        if error.status == 404:
            return None
        raise


def _residence(error: BackendError) -> Residence:
    refused = isinstance(error, NotSent) and error.type == "connect_refused"
    return Residence.UNLOADED if refused else Residence.FAILED


def _waiting(waiting: int | None, running: int | None, load: int | None) -> int | None:
    """The line inside the engine, or what ``/load`` counts beyond it (0 where the server does not count)."""
    if waiting is None or running is None or load is None:
        return waiting
    return max(waiting, load - running)


def _slots(metrics: Sequence[exposition.Sample]) -> int | None:
    """Requests of mean length that its KV cache holds at once (decision model, section 1), 1 to 256.

    None until it has served any: then nobody knows how long they are.
    """
    room = _kv_tokens(metrics)
    means = [_mean(metrics, name) for name in (_PROMPT_TOKENS, _OUTPUT_TOKENS)]
    if room is None or None in means:
        return None
    each = sum(mean for mean in means if mean is not None)
    return max(1, min(_MOST_SLOTS, int(room / each))) if each > 0 else None


def _kv_tokens(metrics: Sequence[exposition.Sample]) -> int | None:
    """Blocks times their size, over all engines."""
    rooms = []
    for name, labels, _ in metrics:
        if name != _CACHE_CONFIG:
            continue
        blocks, size = _label(labels, "num_gpu_blocks"), _label(labels, "block_size")
        if blocks is None or size is None:
            return None
        rooms.append(blocks * size)
    return sum(rooms) if rooms else None


def _label(labels: str, name: str) -> int | None:
    """A whole number among the labels; vLLM writes ``None`` for what it does not know."""
    for pair in labels.split(","):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            digits = value.strip('"')
            return int(digits) if digits.isdecimal() else None
    return None


def _mean(metrics: Sequence[exposition.Sample], name: str) -> float | None:
    total, count = (exposition.values(metrics, f"{name}_{part}") for part in ("sum", "count"))
    return sum(total) / sum(count) if total and sum(count) > 0 else None


def _props(models: JsonValue) -> Props:
    """The first model: the base model; adapters come behind it."""
    first = models[0] if isinstance(models, list) and models else None
    entry = first if isinstance(first, dict) else {}
    name = entry.get("id")
    return Props(
        slots=None,
        context_tokens=_count(entry.get("max_model_len")),
        upstream_name=name if isinstance(name, str) else None,
        pausable=True,
    )


def _count(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
