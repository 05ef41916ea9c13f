"""What keeps a web page from using the api of the person who looks at it: names, origins and CORS.

Needed on loopback too: a page of any site can send requests to 127.0.0.1, and one whose own name is made to
lead there (DNS rebinding) could read the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.types import Message, Send

from services.api.problems import CROSS_SITE, UNKNOWN_HOST, Problem
from shared.addresses import is_address, without_port
from shared.config import ApiSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
_SAME_SITE_ENOUGH = frozenset({"same-origin", "none"})
_MOST_REMEMBERED = 256
_SHOWN = 64
_PREFLIGHT_S = "600"

Headers = Mapping[bytes, Sequence[str]]
"""Those of a request by lower-case name, with every value that came."""


class Browsers:
    """The rules for one api."""

    def __init__(self, settings: ApiSettings) -> None:
        self._names = frozenset({"localhost", settings.host.lower(), *settings.allowed_hosts})
        self._origins = frozenset(settings.cors_origins)
        self._good: set[str] = set()

    def check_host(self, headers: Headers) -> None:
        """Raises ``Problem`` (421) for a name that nobody gave this api.

        Addresses are always right: no name was looked up that somebody could have led here.
        """
        given = headers.get(b"host", ())
        if len(given) == 1 and given[0] in self._good:
            return
        for authority in given:
            host = without_port(authority)
            if len(given) > 1 or not (host in self._names or is_address(host)):
                raise Problem(
                    UNKNOWN_HOST,
                    f"Host: this api does not answer to {host[:_SHOWN]!r}: add that name to "
                    "api.allowed_hosts if it is right",
                )
            if len(self._good) < _MOST_REMEMBERED:
                self._good.add(authority)

    def check_site(self, method: str, headers: Headers) -> None:
        """Raises ``Problem`` (403) where the page of another site wants to change something.

        As browsers say it (https://developer.mozilla.org/docs/Web/HTTP/Headers/Sec-Fetch-Site), older ones by
        ``Origin`` alone; programs say neither.
        """
        if method in SAFE_METHODS:
            return
        origin = _first(headers, b"origin")
        site = _first(headers, b"sec-fetch-site")
        if site in _SAME_SITE_ENOUGH or (site is None and origin is None):
            return
        if origin is not None and origin in self._origins:
            return
        if site is None and origin is not None and _is_of(origin, _first(headers, b"host")):
            return
        raise Problem(
            CROSS_SITE,
            f"Origin: a page of {(origin or 'another site')[:_SHOWN]!r} may not do this: add its origin to "
            "api.cors_origins if it may",
        )

    def allowed_origin(self, headers: Headers) -> str | None:
        """The origin of the request if its pages may read the answer."""
        origin = _first(headers, b"origin")
        return origin if origin is not None and origin in self._origins else None

    async def preflight(self, origin: str, headers: Headers, send: Send) -> None:
        """Answer the question that a browser asks before it sends what a page wants to send."""
        asked = _first(headers, b"access-control-request-headers") or ""
        answered = {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "GET, POST, PUT, DELETE",
            "access-control-allow-headers": asked,
            "access-control-max-age": _PREFLIGHT_S,
            "vary": "Origin, Access-Control-Request-Headers",
        }
        raw = [(name.encode(), value.encode("latin-1")) for name, value in answered.items() if value]
        await send({"type": "http.response.start", "status": 204, "headers": raw})
        await send({"type": "http.response.body", "body": b""})


def readable_by(origin: str, send: Send) -> Send:
    """``send`` with what lets the pages of an origin read the answer."""
    allowed = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"Origin"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *allowed]}
        await send(message)

    return sending


def _first(headers: Headers, name: bytes) -> str | None:
    values = headers.get(name)
    return values[0] if values else None


def _is_of(origin: str, authority: str | None) -> bool:
    """Whether an origin is the api's own; schemes may differ, since a proxy may have taken the TLS off."""
    try:
        return authority is not None and urlsplit(origin).netloc.lower() == authority.lower() != ""
    except ValueError:
        return False
