"""JSON by encoders made once, or not in Python: ``json.dumps`` with options makes one for every call."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

_compact = json.JSONEncoder(separators=(",", ":")).encode
as_it_is = json.JSONEncoder(ensure_ascii=False).encode
"""As text, with the characters that are in it."""


def compact(value: Any) -> bytes:
    """Without white space, in UTF-8; as ASCII where half a surrogate pair, cut by a backend, is in it."""
    try:
        return to_json(value)
    except PydanticSerializationError:
        return _compact(value).encode()
