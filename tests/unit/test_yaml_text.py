"""YAML: what its aliases may stand for."""

from __future__ import annotations

import pytest
import yaml

from shared.yaml_text import parsed


def _doubled(levels: int, using: str) -> str:
    """Each mapping has nine times the one before it."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels + 1):
        named = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {using.format(named)}")
    return "\n".join(lines)


@pytest.mark.parametrize("using", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_of_aliases_are_refused_before_they_fill_the_memory(using: str) -> None:
    with pytest.raises(yaml.YAMLError, match="stand for more than 100000 values"):
        parsed(_doubled(9, using))


def test_an_alias_within_what_it_names_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="stand for more than"):
        parsed("a: &a [*a]")


def test_a_few_aliases_are_what_they_stand_for() -> None:
    assert parsed("a: &a {x: 1}\nb: [*a, {<<: *a, y: 2}]") == {
        "a": {"x": 1},
        "b": [{"x": 1}, {"x": 1, "y": 2}],
    }
    assert parsed("") is None
