"""What can go wrong in a call to a backend, as a tree that reads like the retry table.

BackendError             a call gave no result
├── NotSent              never reached the backend: it did not run; try another one at once
├── Saturated            429 or 503: it did not run; come back after ``retry_after_s``
├── Rejected             any other 4xx, or 501: will never work as asked
│   └── UnknownModel     404 or 400: it knows no model by the name that we sent: not the caller's fault
├── Broken               5xx, or an error object inside a stream: unknown whether it ran
└── Interrupted          reset, silence, or an end before the end: may still be running
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from shared.errors import OrchestratorError
from shared.masking import masked_for_log

_UNKNOWN_MODEL = re.compile(r"\bmodel [`'\"][^`'\"]*[`'\"] (does not exist|not found)")
"""So vLLM (404) and llama.cpp in router mode (400) say that they have no such model; of a path that they lack
they say it in other words."""

DETAIL_LIMIT = 500
"""Characters of a backend's own words that are kept."""


class BackendError(OrchestratorError):
    """A call to a backend gave no result.

    ``type`` is a short stable name for programs, ``detail`` the backend's own words (or the socket's) for
    people, without passwords and keys, ``status`` the HTTP status or the code inside the error object, None
    where there was none. ``answer`` is the error answer itself (its beginning, without our keys), empty where
    there was none.
    """

    answer: bytes = b""

    def __init__(self, error_type: str, detail: str, status: int | None = None) -> None:
        # Masked before it is cut: the beginning of a key would look like none.
        words = masked_for_log(" ".join(detail.encode(errors="replace").decode().split()))
        self.type = error_type
        self.detail = words if len(words) <= DETAIL_LIMIT else words[: DETAIL_LIMIT - 1] + "…"
        self.status = status
        super().__init__(f"{error_type}: {self.detail}" if self.detail else error_type)


class NotSent(BackendError):
    """No connection came about, so the backend did not run it.

    Types: ``connect_refused``, ``connect_timeout``, ``connect_failed``, ``dns_failed``, ``tls_failed``,
    ``bad_url``.
    """


class Saturated(BackendError):
    """The backend is full or still loading; ``retry_after_s`` is what it asked for, if it did."""

    def __init__(self, detail: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__("backend_saturated", detail, status)
        self.retry_after_s = retry_after_s


class Rejected(BackendError):
    """The backend will never accept this request (or this server is no inference backend)."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__("backend_rejected", detail, status)


class UnknownModel(Rejected):
    """The backend serves no model by the name that it was asked for, so it did not run it."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail, status)
        self.type = "backend_unknown_model"


class Broken(BackendError):
    """The backend failed, or answered what is no answer."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__("backend_error", detail, status)


class Interrupted(BackendError):
    """The answer broke off or stayed away; types: ``backend_interrupted``, ``backend_timeout``."""


def from_status(status: int, detail: str, retry_after_s: float | None = None) -> BackendError:
    """The error for an HTTP status, or for the code of an error object inside a stream."""
    if status in (429, 503):
        return Saturated(detail, status, retry_after_s)
    if status in (400, 404) and _UNKNOWN_MODEL.search(detail):
        return UnknownModel(detail, status)
    if 300 <= status < 500 or status == 501:  # not implemented: as final as any 4xx
        return Rejected(detail, status)
    return Broken(detail, status)


def from_error_object(error: object) -> BackendError:
    """The error for the ``error`` member of an event in a stream that had begun with status 200."""
    code = error.get("code") if isinstance(error, dict) else None
    detail = _message(error) or "an error without words"
    if isinstance(code, int) and 400 <= code < 600:
        return from_status(code, detail)
    return Broken(detail)


def error_detail(body: bytes) -> str:
    """The words in an error body: OpenAI's error object, FastAPI's ``detail``, or the text as it is."""
    text = body.decode(errors="replace")
    try:
        data = json.loads(text)
    except ValueError:
        return text
    if isinstance(data, dict):
        for name in ("error", "message", "detail"):
            words = _message(data.get(name))
            if words:
                return words
    return text


def retry_after_s(value: str | None, date: str | None = None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or an HTTP date (RFC 9110, 10.2.3).

    ``date`` is the answer's own Date header; counting from it keeps a wrong clock of ours out.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until = _http_date(value)
        if until is None:
            return None
        since = _http_date(date) if date else None
        seconds = (until - (since or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _http_date(value: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _message(error: object) -> str:
    if isinstance(error, str):
        return error
    if isinstance(error, dict):
        message = error.get("message")
        return message if isinstance(message, str) else json.dumps(error)
    return ""
