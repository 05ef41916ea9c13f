"""Takes passwords and keys out of a text, for whatever is printed or logged.

Every pattern is linear in the text: a request may hold the text of any length that is masked here.
"""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST_SECRET = 6
"""Characters; what is shorter is a word that stands anywhere, and hiding it would hide the log."""

_WORD = re.compile(r"""[^\s'"]+""")
_USER = re.compile(r"(?<![^/@:])[^/@:]*:(?!//)")
"""``user:`` before a password. It begins where the piece before it ends, so each piece is looked at once."""
_ON_A_COMMAND_LINE = re.compile(
    r"((?<![\w-])--?[\w-]*(?:key|token|password|secret)[= ]{1,8})[^\s]+", re.IGNORECASE
)
_IN_A_QUERY = re.compile(r"""([?&][\w-]*(?:key|token|password|secret)=)[^&\s'"]+""", re.IGNORECASE)
_NAMED = re.compile(
    r"""
    ((?:api[-_]?key|authorization|token|secret|password)  # its name, perhaps the end of a longer one,
    \\{0,7}['"]?\s?                                       # in quotes, which JSON within JSON escapes
    (?:(=)|:)\s{0,8}(?:b(?=['"]))?)
    (?: (\[)[^\]]+                                        # a list: all of it
      | (\\{0,7}['"])(?:(?!(?<!\\)\4)[\s\S])+             # a text in quotes: up to one that is not escaped
      | (?:bearer|basic|token|digest|api[-_]?key|negotiate)\s{1,8}[^\s'"]+
      | (?(2)[^\s'"&]+|[^\s'"&]{6,})                      # behind a colon a short word is prose
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_BEARER = re.compile(r"\b(bearer(?:\s{1,8}|%20))[\w.~+/=-]{8,}", re.IGNORECASE)
_OUR_KEY = re.compile(r"\b(orch-[0-9a-f]{12}-)[\w-]+")
_OTHERS_KEY = re.compile(r"\b(sk-)[\w-]{16,}")
_SIGNS = (
    *("@", "orch-", "sk-", "bearer", "authorization", "key", "secret", "password"),
    *("token=", "token:", "token =", "token :", 'token"', "token'", "token\\"),
)
"""Whatever a pattern hides has one of these, in small letters; ``token`` alone stands in every dispatch."""

_secrets: tuple[str, ...] = ()


def keep_secret(secret: str) -> None:
    """From now on this process hides a secret of ours wherever it stands, also as URLs and JSON write it.

    One of fewer than ``SHORTEST_SECRET`` characters is not hidden.
    """
    global _secrets
    if secret in _secrets or len(secret) < SHORTEST_SECRET:
        return
    forms = {form for plain in (secret, unquote(secret)) for form in (plain, *_as_json(plain))}
    # The longest first: another may be a part of it.
    _secrets = tuple(sorted(forms.union(_secrets), key=lambda form: (-len(form), form)))


def without_our_secrets(body: bytes) -> bytes:
    """The answer of somebody who was told one of our secrets, without it."""
    for secret in _secrets:
        for encoding in ("utf-8", "latin-1"):  # http headers are latin-1
            body = body.replace(secret.encode(encoding, "backslashreplace"), HIDDEN.encode())
    return body


def masked(text: str) -> str:
    """A text in which the passwords of its URLs and the keys of its command lines are replaced."""
    return _replaced(_without_passwords(_without_ours(text)), _ON_A_COMMAND_LINE, _IN_A_QUERY)


def masked_for_log(text: str) -> str:
    """A text without our secrets, the passwords of its URLs and the keys of headers, ours and others'."""
    return _masked_for_log(text) if may_hold_secrets(text) else text


def may_hold_secrets(text: str) -> bool:
    """Whether anything could have to be hidden in it; costs a tenth of what the patterns do."""
    small = text.lower()
    for sign in _SIGNS:
        if sign in small:
            return True
    return any(secret in text for secret in _secrets) if _secrets else False


def _masked_for_log(text: str) -> str:
    text = _without_passwords(_without_ours(text))
    text = _NAMED.sub(lambda found: f"{found[1]}{found[3] or found[4] or ''}{HIDDEN}", text)
    return _replaced(text, _IN_A_QUERY, _BEARER, _OUR_KEY, _OTHERS_KEY)


def _replaced(text: str, *patterns: re.Pattern[str]) -> str:
    for pattern in patterns:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def _without_ours(text: str) -> str:
    for secret in _secrets:
        text = text.replace(secret, HIDDEN)
    return text


def _without_passwords(text: str) -> str:
    """``user:password@``, where a URL has it, also in a URL without its scheme; a password may hold ``@``."""
    return _WORD.sub(_without_password, text) if "@" in text else text


def _without_password(found: re.Match[str]) -> str:
    word = found[0]
    last = word.rfind("@")
    user = _USER.search(word, 0, last) if last > 0 else None
    return f"{word[: user.start()]}{HIDDEN}{word[last:]}" if user else word


def _as_json(text: str) -> tuple[str, str]:
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]
