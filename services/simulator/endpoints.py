"""The bodies of llama.cpp's observing endpoints (and of vLLM's, for a model registered as vLLM)."""

from __future__ import annotations

from pydantic import JsonValue

from services.simulator.answers import FINGERPRINT
from services.simulator.slots import Slot
from services.simulator.state import ModelState
from shared.states import BackendType, Residence


def props(model: ModelState) -> dict[str, JsonValue]:
    """``GET /props``."""
    return {
        "default_generation_settings": {"params": {}, "n_ctx": model.context_tokens},
        "total_slots": len(model.pool.slots),
        "model_alias": model.name,
        "model_path": f"simulated/{model.name}.gguf",
        "modalities": {"vision": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": True,
        "endpoint_metrics": True,
        "chat_template": "",
        "build_info": FINGERPRINT,
        "is_sleeping": model.residence is Residence.SLEEPING,
        "simulated": True,
    }


def models(model: ModelState) -> dict[str, JsonValue]:
    """``GET /v1/models``."""
    entry: dict[str, JsonValue] = {"id": model.name, "object": "model", "created": 0, "simulated": True}
    if model.registration.backend is BackendType.VLLM:
        entry |= {"owned_by": "vllm", "max_model_len": model.context_tokens}
    else:
        meta: dict[str, JsonValue] = {"n_ctx": model.context_tokens, "n_ctx_train": model.context_tokens}
        entry |= {"owned_by": "llamacpp", "meta": meta}
    return {"object": "list", "data": [entry]}


def slots(model: ModelState) -> list[JsonValue]:
    """``GET /slots``."""
    return [_slot(model, slot) for slot in model.pool.slots]


def _slot(model: ModelState, slot: Slot) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {
        "id": slot.id,
        "n_ctx": model.context_tokens,
        "speculative": False,
        "is_processing": slot.busy,
    }
    if slot.task is None:
        return entry
    return entry | {
        "id_task": slot.task,
        "n_prompt_tokens": slot.prompt_tokens + slot.decoded,
        "n_prompt_tokens_processed": slot.prompt_tokens,
        "n_prompt_tokens_cache": 0,
        "params": {"max_tokens": slot.max_tokens, "n_predict": slot.max_tokens, "stream": slot.stream},
        "next_token": [
            {
                "has_next_token": slot.busy,
                "has_new_line": False,
                "n_remain": slot.max_tokens - slot.decoded if slot.busy else -1,
                "n_decoded": slot.decoded if slot.busy else 0,
            }
        ],
    }


def metrics(model: ModelState) -> str:
    """``GET /metrics``."""
    vllm = model.registration.backend is BackendType.VLLM
    lines = _vllm_metrics(model) if vllm else _llama_cpp_metrics(model)
    return "".join(f"{name} {value:.6g}\n" for name, value in lines.items())


def _llama_cpp_metrics(model: ModelState) -> dict[str, float]:
    counters = model.counters
    return {
        "llamacpp:prompt_tokens_total": counters.prompt_tokens,
        "llamacpp:prompt_tokens_cached_total": 0,
        "llamacpp:prompt_seconds_total": counters.prompt_s,
        "llamacpp:tokens_predicted_total": counters.output_tokens,
        "llamacpp:tokens_predicted_seconds_total": counters.output_s,
        "llamacpp:n_decode_total": counters.decodes,
        "llamacpp:requests_processing": model.pool.running,
        "llamacpp:requests_deferred": model.pool.deferred,
    }


def _vllm_metrics(model: ModelState) -> dict[str, float]:
    labels = f'{{engine="0",model_name="{model.name}"}}'
    held = sum(slot.prompt_tokens + slot.decoded for slot in model.pool.slots if slot.busy)
    return {
        f"vllm:num_requests_running{labels}": model.pool.running,
        f"vllm:num_requests_waiting{labels}": model.pool.deferred,
        f"vllm:kv_cache_usage_perc{labels}": held / (model.context_tokens * len(model.pool.slots)),
        f"vllm:prompt_tokens_total{labels}": model.counters.prompt_tokens,
        f"vllm:generation_tokens_total{labels}": model.counters.decodes,
    }
