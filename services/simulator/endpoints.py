"""The bodies of llama.cpp's observing endpoints."""

from __future__ import annotations

from pydantic import JsonValue

from services.simulator.answers import FINGERPRINT
from services.simulator.slots import Slot
from services.simulator.state import ModelState
from shared.states import Residence


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
    entry: dict[str, JsonValue] = {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "llamacpp",
        "meta": {"n_ctx": model.context_tokens, "n_ctx_train": model.context_tokens},
        "simulated": True,
    }
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
    counters = model.counters
    lines: dict[str, float] = {
        "llamacpp:prompt_tokens_total": counters.prompt_tokens,
        "llamacpp:prompt_tokens_cached_total": 0,
        "llamacpp:prompt_seconds_total": counters.prompt_s,
        "llamacpp:tokens_predicted_total": counters.output_tokens,
        "llamacpp:tokens_predicted_seconds_total": counters.output_s,
        "llamacpp:n_decode_total": counters.decodes,
        "llamacpp:requests_processing": model.pool.running,
        "llamacpp:requests_deferred": model.pool.deferred,
    }
    return "".join(f"{name} {value:.6g}\n" for name, value in lines.items())
