"""``gpu-orchestrator keys``: made, shown once, listed and revoked, in a pipe, on a terminal and as JSON."""

from __future__ import annotations

import json
import re

import pytest

from services.api.access import Access
from shared.store.api_keys import Role, digest, new_key
from shared.store.records import KeyLimits
from tests.kit.api_keys import keys_of
from tests.kit.cli import Commands, Ended, environment
from tests.kit.redis_fixture import free_port
from tests.kit.store_fixture import Store


class Keys:
    def __init__(self, store: Store, commands: Commands) -> None:
        self.environ = environment(ORCH_REDIS__URL=store.url)
        self._commands = commands

    def __call__(self, *words: str) -> Ended:
        return self._commands.piped("keys", *words, environ=self.environ)

    def terminal(self, *words: str) -> Ended:
        return self._commands.on_terminal("keys", *words, environ=self.environ)


@pytest.fixture
def keys(store: Store, commands: Commands) -> Keys:
    return Keys(store, commands)


async def test_a_key_is_shown_once_and_only_its_hash_is_kept(keys: Keys, store: Store) -> None:
    made = keys(
        *("create", "alice", "--in-flight", "4", "--queued", "10", "--per-minute", "60", "--models", "a, b")
    )
    assert (made.code, made.err) == (0, "")
    key = made.out.strip()
    assert len(key) > 50
    (stored,) = (await keys_of(store).read()).keys
    assert stored.hash == digest(key)
    assert Access.of(stored) == Access("alice", Role.USER, ("a", "b"), KeyLimits("alice", 4, 10, 60))
    assert key not in str(await store.dump())
    for listed in (keys("list"), keys("list", "--json"), keys.terminal("list")):
        assert listed.code == 0
        assert "alice" in listed.out
        assert key not in listed.out
        assert stored.hash not in listed.out


async def test_on_a_terminal_and_as_json_the_key_comes_with_what_it_is(keys: Keys, store: Store) -> None:
    drawn = keys.terminal("create", "alice", "--role", "admin")
    document = keys("create", "bob", "--json").document
    hashes = {key.name: key.hash for key in (await keys_of(store).read()).keys}
    assert "shown this once" in drawn.out
    (shown,) = re.findall(r"orch-[0-9a-f]{12}-[\w-]{43}", drawn.out)
    assert digest(shown) == hashes["alice"]
    assert digest(document["key"]) == hashes["bob"]
    assert (document["name"], document["role"]) == ("bob", "user")


async def test_a_name_that_has_a_key_gets_no_second_one_until_it_is_revoked(keys: Keys, store: Store) -> None:
    keys("create", "alice")
    again = keys("create", "alice")
    assert (again.code, again.out) == (1, "")
    assert "revoke" in again.err
    assert keys("revoke", "alice").code == 0
    assert keys("create", "alice").code == 0
    events = [entry.fields["type"] for entry in (await store.dump()).streams[store.keys.control]]
    assert events == ["api_key.created", "api_key.revoked", "api_key.created"]


async def test_a_revoked_key_stays_in_the_list(keys: Keys) -> None:
    keys("create", "alice")
    assert keys("revoke", "alice", "--json").document == {"name": "alice", "revoked": True}
    assert "revoked" in keys("list").out
    (listed,) = json.loads(keys("list", "--json").out)["keys"]
    assert listed["revoked_ms"] >= listed["created_ms"] > 0
    assert keys("revoke", "alice").code == 0


async def test_an_unknown_name_can_not_be_revoked(keys: Keys) -> None:
    ended = keys("revoke", "nobody")
    assert (ended.code, ended.out) == (1, "")
    assert "keys list" in ended.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("a:b",), "name"),
        (("alice", "--in-flight", "0"), "in_flight"),
        (("alice", "--per-minute", "1000000"), "per_minute"),
        (("alice", "--models", "a,,b"), "models"),
        (("alice", "--role", "king"), "user or admin"),
    ],
    ids=str,
)
async def test_a_wrong_value_is_named_and_makes_no_key(
    keys: Keys, store: Store, words: tuple[str, ...], named: str
) -> None:
    ended = keys("create", *words)
    assert (ended.code, ended.out) == (2, "")
    assert named in ended.err
    assert not await keys_of(store).read()


def test_without_redis_it_says_so_in_one_line(commands: Commands) -> None:
    port = free_port()
    for words in (("create", "alice"), ("list",), ("revoke", "alice")):
        ended = commands.piped("keys", *words, environ=environment(ORCH_REDIS__EMBEDDED_PORT=str(port)))
        assert (ended.code, ended.out) == (3, "")
        (line,) = ended.err.splitlines()
        assert f"redis://127.0.0.1:{port}" in line
        assert "start it with `gpu-orchestrator up`" in line


async def test_a_change_that_is_sent_again_changes_nothing(store: Store) -> None:
    _, key = new_key("alice")
    for _ in range(2):
        await keys_of(store).create(key)
    before = await store.dump()
    await keys_of(store).create(key)
    assert await store.dump() == before
    await keys_of(store).revoke("alice")
    before = await store.dump()
    await keys_of(store).revoke("alice")
    assert await store.dump() == before
