"""Takes passwords and keys out of plain data before it is printed."""

from __future__ import annotations

import re
from typing import Any

from shared.masking import HIDDEN, masked

_SECRET_NAME = re.compile(r"(^|_)(password|passwd|secret|token|api_key|hash|private_key)$", re.IGNORECASE)
_SECRET_PLURAL = re.compile(r"(^|_)(passwords|secrets|api_keys|hashes)$", re.IGNORECASE)


def masked_tree(value: Any, name: str = "") -> Any:
    """Plain data with every secret in it replaced: by the name of its key, or by how its text looks."""
    if value is None:
        return None
    if _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, dict):
        return {key: masked_tree(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        inner = name[: -2 if name.endswith("hashes") else -1] if _SECRET_PLURAL.search(name) else name
        return [masked_tree(item, inner) for item in value]
    return masked(value) if isinstance(value, str) else value
