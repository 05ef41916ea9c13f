"""Plain data from YAML whose aliases can't blow it up."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 100_000
"""Scalars, lists and mappings of a document, those behind an alias counted wherever it stands."""


def parsed(text: str) -> Any:
    """The one document in a text; raises ``yaml.YAMLError`` and whatever else PyYAML lets through.

    A few hundred bytes of aliases of aliases stand for more than any memory holds: PyYAML shares what they
    name, but not where it merges (``<<``), and nobody shares it who prints it.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes this one stands for."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    key = id(node)
    if key not in known:
        known[key] = MOST_NODES  # as long as it is not known: an alias within what it names has no end
        parts = (part for value in node.value for part in (value if isinstance(value, tuple) else (value,)))
        known[key] = 1 + sum(_expanded(part, known) for part in parts)
        if known[key] > MOST_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"its aliases stand for more than {MOST_NODES} values", node.start_mark
            )
    return known[key]
