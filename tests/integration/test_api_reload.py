"""The models of a changed file and the registry: written once, and late where Redis was away."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.api.registry import Registry
from shared.errors import StoreUnavailable
from shared.registry import Registration
from shared.store.server import EmbeddedRedis
from shared.store.streams import read_range
from tests.kit.monitor import log_lines
from tests.kit.redis_fixture import free_port, redis_reply
from tests.kit.store_fixture import Store, open_store
from tests.kit.waiting import wait_until

OLD = Registration(name="old", port=9001, source="file")
NEW = Registration(name="new", port=9002, source="file")
THEIRS = Registration(name="theirs", port=9003)


async def changes(store: Store) -> list[tuple[str, str]]:
    entries = await read_range(store.redis, store.keys.control, count=100)
    return [(entry.fields["type"], entry.fields["model"]) for entry in entries]


async def test_the_models_of_the_file_are_replaced_and_those_of_others_stay(store: Store) -> None:
    registry = Registry(store.fleet, [OLD])
    await registry.publish()
    await store.fleet.register([THEIRS])

    await registry.replace([NEW])
    assert [entry.name for entry in registry.known] == ["new", "theirs"]
    said = await changes(store)
    assert said[-2:] == [("model.removed", "old"), ("model.registered", "new")]

    await registry.replace([NEW])
    await registry.refresh()
    # Another api that sees the same file later, and one that starts anew.
    await Registry(store.fleet, [NEW]).publish()
    second = Registry(store.fleet, [OLD])
    await second.replace([NEW])
    assert await changes(store) == said


async def test_a_file_that_takes_a_registration_over_says_that_it_has_become_the_files(store: Store) -> None:
    await store.fleet.register([THEIRS])
    registry = Registry(store.fleet, [OLD])
    with log_lines() as lines:
        await registry.publish()
        assert not [line for line in lines if "over HTTP" in line]
        ours = THEIRS.model_copy(update={"source": "file"})
        await registry.replace([OLD, ours])
        await registry.replace([OLD, ours.model_copy(update={"slots": 2})])
        await Registry(store.fleet, [OLD, ours]).publish()
    (line,) = [line for line in lines if "over HTTP" in line]
    assert line.startswith("model theirs was registered over HTTP; the settings file names it")


async def test_models_that_redis_refuses_are_an_error_and_the_registry_goes_on(tmp_path: Path) -> None:
    with EmbeddedRedis(free_port(), tmp_path) as server:
        async with open_store(server.url) as store:
            registry = Registry(store.fleet, [OLD])
            await registry.publish()
            redis_reply(server.url, "ACL", "SETUSER", "default", "-evalsha")
            with log_lines() as lines:
                await registry.replace([NEW])
                await registry.refresh()
            (line,) = [line for line in lines if "are not registered" in line]
            assert "evalsha" in line
            assert [entry.name for entry in registry.known] == ["old"]
            redis_reply(server.url, "ACL", "SETUSER", "default", "+evalsha")
            await registry.replace([NEW, OLD])
            assert [entry.name for entry in registry.known] == ["new", "old"]


async def test_what_was_learned_stays_with_a_model_whose_server_is_the_same(store: Store) -> None:
    registry = Registry(store.fleet, [OLD])
    await registry.publish()
    await store.redis.hset(store.keys.model("old"), "samples", "5")

    await registry.replace([OLD.model_copy(update={"slots": 2, "agent_types": ("Chat",)})])
    assert (await store.model("old"))["samples"] == "5"
    await registry.replace([OLD.model_copy(update={"port": 9100})])
    assert "samples" not in await store.model("old")


async def test_a_change_while_redis_is_away_is_written_once_it_is_back(tmp_path: Path) -> None:
    server = EmbeddedRedis(free_port(), tmp_path)
    with server:
        async with open_store(server.url) as store:
            registry = Registry(store.fleet, [OLD])
            await registry.publish()
            server.kill()
            with log_lines() as lines:
                await registry.replace([NEW])
            assert [line for line in lines if "once Redis answers" in line]
            with pytest.raises(StoreUnavailable):
                await registry.refresh()

            server.launch()

            async def written() -> bool:
                try:
                    await registry.refresh()
                except StoreUnavailable:
                    return False
                return [entry.name for entry in registry.known] == ["new"]

            await wait_until(written, "the models of the changed file are registered")
