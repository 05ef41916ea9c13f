"""How to look at a vLLM server (first cut: queue, KV use, sleep; names of 0.32 with older ones behind)."""

from __future__ import annotations

from statistics import fmean

from pydantic import JsonValue

from shared.backends import exposition
from shared.backends.errors import BackendError, Interrupted, NotSent
from shared.backends.fetch import Fetcher
from shared.backends.readings import Probe, Props
from shared.states import Residence

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""0..1 despite the names, one series an engine; renamed by vLLM's pull request 18354."""
_SLEEP_STATE = "vllm:engine_sleep_state"


async def probe(fetcher: Fetcher, props: Props | None) -> Probe:
    """Read ``/health`` and ``/metrics``, and ``/v1/models`` when (re)connected; never raises.

    ``slots`` stays None: vLLM batches as long as its KV memory lasts. Its port opens only once it is ready;
    a 503 from ``/health`` is a dead engine. During sleep ``/health`` says 200 and the gauges keep their last
    values, so they count as unknown.
    """
    simulated = False
    latency_ms: float | None = None
    metrics: list[exposition.Sample] = []
    residence, error_words = Residence.RESIDENT, None
    try:
        simulated = (await fetcher.get("/health")).simulated
        latency_ms = fetcher.elapsed_ms
        metrics = exposition.parse((await fetcher.get("/metrics")).text)
        if props is None:
            props = _props((await fetcher.get("/v1/models")).object().get("data"))
        if 0.0 in exposition.values(metrics, _SLEEP_STATE, label='sleep_state="awake"'):
            residence, metrics = Residence.SLEEPING, []
    except BackendError as error:
        error_words = str(error)
        if latency_ms is None or not isinstance(error, Interrupted):
            residence, props = _residence(error), None
    kv_use = exposition.values(metrics, *_KV_USE)
    return Probe(
        residence=residence,
        running=exposition.total(metrics, _RUNNING),
        waiting=exposition.total(metrics, _WAITING),
        slots=None,
        context_tokens=props.context_tokens if props else None,
        kv_use=fmean(kv_use) if kv_use else None,
        upstream_name=props.upstream_name if props else None,
        error=error_words,
        latency_ms=fetcher.elapsed_ms if latency_ms is None else latency_ms,
        simulated=simulated,
        props=props,
    )


def _residence(error: BackendError) -> Residence:
    refused = isinstance(error, NotSent) and error.type == "connect_refused"
    return Residence.UNLOADED if refused else Residence.FAILED


def _props(models: JsonValue) -> Props:
    """The first model: the base model; adapters come behind it."""
    first = models[0] if isinstance(models, list) and models else None
    entry = first if isinstance(first, dict) else {}
    length, name = entry.get("max_model_len"), entry.get("id")
    return Props(
        slots=None,
        context_tokens=length if isinstance(length, int) and not isinstance(length, bool) else None,
        upstream_name=name if isinstance(name, str) else None,
    )
