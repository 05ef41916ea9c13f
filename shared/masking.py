"""Takes passwords and keys out of a text, for whatever is printed or logged."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER_AND_PASSWORD = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://)?[^\s'"/@:]*:(?!//)[^\s'"]*@""")
"""``user:password@``, where a URL has it, also in a URL without its scheme; a password may hold ``@``."""
_ON_A_COMMAND_LINE = re.compile(r"(--?[\w-]*(?:key|token|password|secret)[= ]+)\S+", re.IGNORECASE)
_IN_A_QUERY = re.compile(r"""([?&][\w-]*(?:key|token|password|secret)=)[^&\s'"]+""", re.IGNORECASE)
_IN_A_HEADER = re.compile(
    r"""\b(bearer\s+|(?:x-api-key|authorization)['"]?\s*[:=]\s*['"]?(?:(?:bearer|basic)\s+)?)[\w.~+/=-]{8,}""",
    re.IGNORECASE,
)
_OUR_KEY = re.compile(r"\b(orch-[0-9a-f]{12}-)[\w-]+")
_OTHERS_KEY = re.compile(r"\b(sk-)[\w-]{16,}")
_SIGNS = (
    *("@", "orch-", "sk-", "earer", "EARER", "uthorization", "AUTHORIZATION", "key", "KEY", "Key"),
    *("token=", "secret=", "password="),
)
"""Whatever hides something has one of these; looking for them costs a tenth of what the patterns do."""


def masked(text: str) -> str:
    """A text in which the passwords of its URLs and the keys of its command lines are replaced."""
    text = _USER_AND_PASSWORD.sub(lambda found: f"{found[1] or ''}{HIDDEN}@", text)
    for pattern in (_ON_A_COMMAND_LINE, _IN_A_QUERY):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def masked_for_log(text: str) -> str:
    """A text without the passwords of its URLs and the keys of headers, ours and others'."""
    for sign in _SIGNS:
        if sign in text:
            return _masked_for_log(text)
    return text


def _masked_for_log(text: str) -> str:
    text = _USER_AND_PASSWORD.sub(lambda found: f"{found[1] or ''}{HIDDEN}@", text)
    for pattern in (_IN_A_QUERY, _IN_A_HEADER, _OUR_KEY, _OTHERS_KEY):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text
