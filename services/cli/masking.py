"""Takes passwords and keys out of whatever is printed."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_USER_AND_PASSWORD = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://)?[^\s'"/@:]*:(?!//)[^\s'"]*@""")
"""``user:password@``, where a URL has it, also in a URL without its scheme; a password may hold ``@``."""
_ON_A_COMMAND_LINE = re.compile(r"(--?[\w-]*(?:key|token|password|secret)[= ]+)\S+", re.IGNORECASE)
_IN_A_QUERY = re.compile(r"""([?&][\w-]*(?:key|token|password|secret)=)[^&\s'"]+""", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(^|_)(password|passwd|secret|token|api_key|hash|private_key)$", re.IGNORECASE)
_SECRET_PLURAL = re.compile(r"(^|_)(passwords|secrets|api_keys|hashes)$", re.IGNORECASE)


def masked(text: str) -> str:
    """A text in which the passwords of its URLs and the keys of its command lines are replaced."""
    text = _USER_AND_PASSWORD.sub(lambda found: f"{found[1] or ''}{HIDDEN}@", text)
    for pattern in (_ON_A_COMMAND_LINE, _IN_A_QUERY):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


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
