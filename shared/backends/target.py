"""Where a URL leads, and the part of a request's head that is the same for all that go there."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, quote, unquote, urlsplit

from shared.backends.errors import NotSent

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_IN_A_PATH = "/%:@!$&'()*+,;=~?"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """``host`` as it is looked up or connected to, ``literal`` if it is an IP address already.

    ``origin`` is what connections are kept by. ``head`` ends behind the headers that never change.
    """

    origin: tuple[str, int, bool]
    host: str
    port: int
    tls: bool
    literal: bool
    head: str
    authorization: str

    def request_head(self, headers: Mapping[str, str], length: int) -> bytes:
        """The head of a POST of ``length`` bytes; raises ``NotSent`` for a header with control characters."""
        head = self.head
        for name, value in headers.items():
            if not value.isprintable():
                raise NotSent("bad_url", f"the header {name} would hold what no header can: check the key")
            head += f"{name}: {value}\r\n"
        if self.authorization and "Authorization" not in headers:
            head += self.authorization
        return f"{head}Content-Length: {length}\r\n\r\n".encode("utf-8", "surrogateescape")


def target_of(url: str, *, keep: bool) -> Target:
    """Read an ``http`` or ``https`` URL; raises ``NotSent`` (``bad_url``).

    A user in it becomes basic authorization. ``keep``: whether the connection is to stay open.
    """
    try:
        if _CONTROL.search(url):
            raise ValueError("it holds control characters")
        parts = urlsplit(url)
        host, port = _host(parts), parts.port
        if parts.scheme not in _PORTS:
            raise ValueError(f"its scheme is no http: {parts.scheme!r}")
    except ValueError as error:  # UnicodeError is one: a name that no DNS can hold
        raise NotSent("bad_url", f"no address to connect to: {url} ({error})") from None
    tls = parts.scheme == "https"
    default = _PORTS[parts.scheme]
    shown = f"[{host}]" if ":" in host else host
    if port not in (None, default):
        shown += f":{port}"
    path = parts.path or "/"
    lines = [
        f"POST {quote(f'{path}?{parts.query}' if parts.query else path, safe=_IN_A_PATH)} HTTP/1.1",
        f"Host: {shown}",
        "User-Agent: gpu-orchestrator",
        "Accept: */*",
        "Accept-Encoding: identity",  # what is compressed could not be looked into on its way
        "Content-Type: application/json",
        *([] if keep else ["Connection: close"]),
        "",
    ]
    number = default if port is None else port
    origin = (host, number, tls)
    return Target(origin, host, number, tls, _is_ip(host), "\r\n".join(lines), _authorization(parts))


def _host(parts: SplitResult) -> str:
    host = parts.hostname
    if not host:
        raise ValueError("it names no host")
    if _is_ip(host):
        return host
    if any(char in host for char in " %<>\"'\\^`{|}"):
        raise ValueError("its host is no name")
    return host.encode("idna").decode()


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _authorization(parts: SplitResult) -> str:
    if parts.username is None and parts.password is None:
        return ""
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
