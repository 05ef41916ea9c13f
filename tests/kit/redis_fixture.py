"""A real Redis for tests: one server per session on a free port, emptied before each test."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shared.store import raw
from shared.store.server import EmbeddedRedis


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listened on a moment ago."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def redis_reply(url: str, *command: str) -> raw.Reply:
    """The reply to one command; an error reply fails the test."""
    reply = next(raw.replies(url, command))
    assert not isinstance(reply, raw.Failure), f"{command}: {reply}"
    return reply


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The session's server; a test that kills or reconfigures one starts its own ``EmbeddedRedis``."""
    with EmbeddedRedis(free_port(), tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of the session's server, emptied."""
    redis_reply(redis_server.url, "FLUSHALL")
    return redis_server.url
