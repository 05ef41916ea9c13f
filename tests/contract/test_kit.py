"""The test kit's own promises about the tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.backends.completion import complete
from shared.backends.http import HttpClient
from tests.kit.backends import call
from tests.kit.llama_server import LlamaServer, require_llama_cpp

PURE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}


@pytest.mark.llamacpp
def test_the_same_arguments_give_the_same_model(tmp_path: Path) -> None:
    require_llama_cpp()
    from tests.kit.tiny_gguf import tiny_gguf

    one, same = tiny_gguf(tmp_path / "one.gguf"), tiny_gguf(tmp_path / "same.gguf")
    other = tiny_gguf(tmp_path / "other.gguf", name="other")

    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


@pytest.mark.llamacpp
async def test_the_bias_decides_how_soon_an_answer_ends_itself(tmp_path: Path, client: HttpClient) -> None:
    require_llama_cpp()
    from tests.kit.tiny_gguf import tiny_gguf

    model = tiny_gguf(tmp_path / "short.gguf", eos_bias=3.5)
    async with LlamaServer(model) as server:
        done = await complete(client, call(server.url, {"prompt": "the queue", "max_tokens": 1000, **PURE}))

    assert done.finish_reason == "stop"
    assert done.output_tokens is not None
    assert done.output_tokens < 200


@pytest.mark.llamacpp
async def test_the_models_of_a_session_never_end_before_max_tokens(
    small_llama: LlamaServer, client: HttpClient
) -> None:
    done = await complete(client, call(small_llama.url, {"prompt": "the queue", "max_tokens": 500, **PURE}))

    assert (done.finish_reason, done.output_tokens) == ("length", 500)
    assert all(word.isalpha() for word in done.text.split())


@pytest.mark.llamacpp
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    require_llama_cpp()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")

    with pytest.raises(pytest.fail.Exception, match="did not start"):
        LlamaServer(broken).start()
