"""Backends for tests: models written once a session, the real llama.cpp, and an HTTP session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from shared.backends.http import HttpClient
from shared.backends.session import open_session
from tests.kit.llama_server import LlamaServer, require_llama_cpp


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2 layers of 64 (0.3 MB)."""
    require_llama_cpp()
    from tests.kit.tiny_gguf import tiny_gguf

    return tiny_gguf(tmp_path_factory.mktemp("small") / "small.gguf", layers=2, hidden=64, name="small")


@pytest.fixture(scope="session")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 4 layers of 128 (1.6 MB)."""
    require_llama_cpp()
    from tests.kit.tiny_gguf import tiny_gguf

    return tiny_gguf(tmp_path_factory.mktemp("large") / "large.gguf", layers=4, hidden=128, name="large")


@pytest.fixture(scope="session")
def small_llama(small_model: Path) -> Iterator[LlamaServer]:
    """A running llama.cpp with the small model: 2 slots of 4,096 tokens."""
    with LlamaServer(small_model, alias="small") as server:
        yield server


@pytest.fixture(scope="session")
def large_llama(large_model: Path) -> Iterator[LlamaServer]:
    """A running llama.cpp with the large model: 1 slot of 8,192 tokens."""
    with LlamaServer(large_model, alias="large", slots=1, context_tokens=8192) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A session as the monitor opens it."""
    session = open_session()
    yield session
    await session.close()


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    """What makes backends work, as api and router have it."""
    client = HttpClient()
    yield client
    await client.aclose()
