"""A real Redis for tests: one server per session on a free port, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.store import raw
from shared.store.server import EmbeddedRedis
from tests.kit.ports import free_port as free_port


def redis_reply(url: str, *command: str) -> raw.Reply:
    """The reply to one command; an error reply fails the test."""
    reply = next(raw.replies(url, command))
    assert not isinstance(reply, raw.Failure), f"{command}: {reply}"
    return reply


def empty(url: str) -> None:
    """Forget everything, also what processes that are gone had sent and a slow server has not read yet."""
    for kind in ("normal", "pubsub"):
        redis_reply(url, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    redis_reply(url, "FLUSHALL")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The session's server; a test that kills or reconfigures one starts its own ``EmbeddedRedis``."""
    with EmbeddedRedis(free_port(), tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of the session's server, emptied."""
    empty(redis_server.url)
    return redis_server.url
