"""Writes a tiny random-weights Llama model as Hugging Face lays it out, which the real vLLM loads.

Nothing is downloaded, and neither torch nor transformers is needed: both file formats are simple. Head size
is 32, since vLLM's attention on CPU takes multiples of 32 only.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from tests.kit.tiny_vocabulary import BOS, CHAT_TEMPLATE, EOS, Vocabulary, vocabulary_of_words

Floats = NDArray[np.float32]

_LAYERS, _HIDDEN, _HEADS, _KV_HEADS = 2, 64, 2, 1
_HEAD_SIZE = _HIDDEN // _HEADS
_CONTEXT_TOKENS = 8192
_NEVER = -40.0


def tiny_hf(directory: Path) -> Path:
    """Write the model (0.7 MB) into ``directory`` and return it; always the same bytes.

    It speaks in readable words and never ends before ``max_tokens``, by the same trick as ``tiny_gguf``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = vocabulary_of_words()
    for name, content in (
        ("config.json", _config(vocabulary)),
        ("generation_config.json", _ends(vocabulary)),
        ("tokenizer.json", _tokenizer(vocabulary)),
        ("tokenizer_config.json", _tokenizer_config()),
    ):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    _save_tensors(directory / "model.safetensors", _tensors(vocabulary))
    return directory


def _config(vocabulary: Vocabulary) -> dict[str, JsonValue]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary.tokens),
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": _CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **_ends(vocabulary),
    }


def _ends(vocabulary: Vocabulary) -> dict[str, JsonValue]:
    return {"bos_token_id": vocabulary.specials[BOS], "eos_token_id": vocabulary.specials[EOS]}


def _tokenizer(vocabulary: Vocabulary) -> dict[str, JsonValue]:
    byte_level: dict[str, JsonValue] = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    plain = ("single_word", "lstrip", "rstrip", "normalized")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, "special": True, **dict.fromkeys(plain, False)}
            for text, number in vocabulary.specials.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": False},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
            "merges": [list(merge.split(" ")) for merge in vocabulary.merges],
        },
    }


def _tokenizer_config() -> dict[str, JsonValue]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": BOS,
        "model_max_length": _CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _tensors(vocabulary: Vocabulary) -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    embedding = _normal(rng, len(vocabulary.tokens), _HIDDEN, 0.5)
    embedding[:, 0] = math.sqrt(_HIDDEN)
    output = _normal(rng, len(vocabulary.tokens), _HIDDEN, 0.25)
    bias = np.full(len(vocabulary.tokens), _NEVER, np.float32)
    bias[list(vocabulary.words)] = 0.0
    output[:, 0] = bias / (embedding[0, 0] / np.sqrt((embedding**2).mean()))
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(_HIDDEN, np.float32),
        "lm_head.weight": output,
    }
    for layer in range(_LAYERS):
        tensors |= _block(rng, f"model.layers.{layer}.")
    return tensors


def _block(rng: np.random.Generator, prefix: str) -> dict[str, Floats]:
    attention, mlp, kv = f"{prefix}self_attn.", f"{prefix}mlp.", _KV_HEADS * _HEAD_SIZE
    shapes = {
        f"{attention}q_proj.weight": (_HIDDEN, _HIDDEN),
        f"{attention}k_proj.weight": (kv, _HIDDEN),
        f"{attention}v_proj.weight": (kv, _HIDDEN),
        f"{attention}o_proj.weight": (_HIDDEN, _HIDDEN),
        f"{mlp}gate_proj.weight": (2 * _HIDDEN, _HIDDEN),
        f"{mlp}up_proj.weight": (2 * _HIDDEN, _HIDDEN),
        f"{mlp}down_proj.weight": (_HIDDEN, 2 * _HIDDEN),
    }
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    block = {f"{prefix}{norm}": np.ones(_HIDDEN, np.float32) for norm in norms}
    for name, (rows, columns) in shapes.items():
        block[name] = _normal(rng, rows, columns, 0.3 / math.sqrt(columns))
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            block[name][0] = 0.0  # dimension 0 of the residual stream stays the constant
    return block


def _normal(rng: np.random.Generator, rows: int, columns: int, scale: float) -> Floats:
    return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)


def _save_tensors(path: Path, tensors: Mapping[str, Floats]) -> None:
    """The safetensors format: length of the header, a JSON header padded to 8 bytes, the raw tensors."""
    header: dict[str, JsonValue] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in tensors.values():
            out.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
