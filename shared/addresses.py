"""Host names, origins and networks as settings write them and as requests carry them."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``; of names only localhost is."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether a host, as a URL writes it, is an IP address; IPv6 ones stand in brackets."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        version = ipaddress.ip_address(bare).version
    except ValueError:
        return False
    return (version == 6) == (bare is not host)


def without_port(authority: str) -> str:
    """The host of ``host:port``, in lower case and without the dot that may end it."""
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdecimal() or (host.startswith("[") and not host.endswith("]")):
        host = authority
    return host.lower().removesuffix(".")


def _host_name(text: str) -> str:
    name = text.strip().lower().removesuffix(".")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text!r} must be a name such as gpubox.lan, without scheme and port")
    return name


def _origin(text: str) -> str:
    origin = text.strip().lower()
    parts = urlsplit(origin)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or origin != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError(f"{text!r} must be an origin such as https://chat.example.org, without a path")
    return origin


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip()))
    except ValueError:
        raise ValueError(f"{text!r} must be an IP address or a network such as 10.0.0.0/8") from None


HostName = Annotated[str, AfterValidator(_host_name)]
"""A name as browsers send it in ``Host``, without its port."""
Origin = Annotated[str, AfterValidator(_origin)]
"""A scheme, a host and maybe a port, as browsers send them in ``Origin``."""
Network = Annotated[str, AfterValidator(_network)]
"""An IP address or network."""
