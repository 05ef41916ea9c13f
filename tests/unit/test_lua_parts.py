"""Scripts carry what they use of the shared parts, and nothing else."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from shared.config import HistorySettings
from shared.keys import Keys
from shared.store.lua_parts import linked, words, written_in
from shared.store.scripts import NAMES, _source

_PART = """-- What several scripts share.

local clock = redis.call('TIME')
local NOW, LATER = clock[1], clock[1] + 1

-- Rounded.
local function int(value)
  return string.format('%.0f', value)
end

local function now()
  return int(NOW)
end

local function unused()
  return now()
end

local LIMITS = {
  most = 5,
}
"""


def test_a_script_gets_what_it_uses_and_what_that_uses_in_the_same_order() -> None:
    text = linked([_PART], "return now()")
    assert [line for line in text.splitlines() if line.startswith("local")] == [
        "local clock = redis.call('TIME')",
        "local NOW, LATER = clock[1], clock[1] + 1",
        "local function int(value)",
        "local function now()",
    ]
    assert text.endswith("end\nreturn now()")


def test_a_script_that_uses_nothing_gets_nothing() -> None:
    assert linked([_PART], "return 1") == "return 1"


def test_a_definition_of_several_lines_comes_whole() -> None:
    assert linked([_PART], "return LIMITS.most").startswith("local LIMITS = {\n  most = 5,\n}\n")


def test_what_is_no_definition_is_kept() -> None:
    part = "local a = 1\nif redis.call('EXISTS', 'x') == 1 then\n  redis.call('DEL', 'x')\nend\n"
    assert linked([part], "return 1") == part.partition("\n")[2].strip() + "\nreturn 1"


def test_a_later_part_may_use_an_earlier_one() -> None:
    assert linked(["local a = 1", "local b = a"], "return b") == "local a = 1\nlocal b = a\nreturn b"


@pytest.mark.parametrize("name", NAMES)
def test_no_script_names_what_it_was_not_given(name: str) -> None:
    """Lua finds out only when it gets there."""
    text = _source(name, Keys("orch"), HistorySettings(), 86_400.0)
    assert text.startswith("#!lua")
    defined = {word for line in re.findall(r"local (?:function )?[\w, ]+", text) for word in words(line)}
    known = words(" ".join(re.findall(r"^local (?:function )?[\w, ]+", _everything(), re.MULTILINE)))
    code = re.sub(r"--.*", "", text)
    assert words(code) & known <= defined


@pytest.mark.parametrize("name", NAMES)
def test_every_constant_is_written_in(name: str) -> None:
    text = _source(name, Keys("orch"), HistorySettings(), 86_400.0)
    code = re.sub(r"--.*", "", text)
    assert words(code).isdisjoint({"K", "KEEP", "STATE", "EVENT", "GROUP", "RETENTION_MS", "HISTORY_MS"})
    assert re.findall(r"(?<!function )key\('(?!orch:)", code) == []


def test_constants_and_what_is_around_a_key_are_literals() -> None:
    text = "redis.call('SET', key('job', id), KEEP.jobs, STATE.dead, GROUP_OF, x.K.y, 'it''s')"
    constants: dict[str, str | int] = {"KEEP.jobs": 5, "STATE.dead": "it's \\ over", "GROUP": "g"}
    assert written_in(text, constants, lambda name: (f"{name}:", ":x")) == (
        "redis.call('SET', key('job:', ':x', id), 5, 'it\\'s \\\\ over', GROUP_OF, x.K.y, 'it''s')"
    )


def test_a_constant_that_is_none_is_found_when_the_script_is_loaded() -> None:
    with pytest.raises(KeyError, match=r"K\.nowhere"):
        written_in("return K.nowhere", {}, lambda _: ("", ""))


def _everything() -> str:
    parts = (files("shared.store") / "lua").iterdir()
    shared = {"common.lua", "create.lua", "history.lua", "models.lua", "once.lua", "limits.lua"}
    return "\n".join(part.read_text() for part in parts if part.name in shared)
