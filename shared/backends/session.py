"""The HTTP session that all backends share, and what its failures mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ECONNREFUSED

import aiohttp

from shared.backends.errors import BackendError, Broken, Interrupted, NotSent


def open_session(*, reuse_s: float = 0.0) -> aiohttp.ClientSession:
    """A session for any number of backends: no connection limit, no total time-out, no cookies.

    A connection carries one request. llama.cpp announces ``Keep-Alive`` and yet closes 0.1 ms after the end
    of a stream, and every server closes idle connections some day: a request written into a closing
    connection may or may not have run, which a new connection (0.1 ms on one host) never leaves open. For
    reading alone, which may be done again, ``reuse_s`` lets one that was idle for less carry another request.
    aiohttp sets TCP_NODELAY on every connection. Close the session with ``await session.close()``.
    """
    connector = (
        aiohttp.TCPConnector(limit=0, keepalive_timeout=reuse_s, ttl_dns_cache=30)
        if reuse_s
        else aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=30)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        json_serialize=_compact,
    )


def root_url(base_url: str) -> str:
    """A backend's address without the ``/v1`` that people copy along, and without a trailing slash."""
    root = base_url.rstrip("/")
    return root if root.endswith("//v1") else root.removesuffix("/v1").rstrip("/")


def headers(api_key: str | None) -> dict[str, str]:
    """The headers that every call to a backend carries."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


@contextmanager
def backend_errors() -> Iterator[None]:
    """Turn what aiohttp raises inside into the tree of ``shared.backends.errors``."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError, UnicodeError) as error:
        raise _from_transport(error) from error


def _from_transport(error: Exception) -> BackendError:
    words = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        return NotSent(_connect_type(error), words)
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return NotSent("tls_failed", words)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return NotSent("connect_timeout", words)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | UnicodeError):
        return NotSent(
            "bad_url", f"no address to connect to: {words}"
        )  # UnicodeError: a name no DNS can hold
    if isinstance(error, TimeoutError):
        return Interrupted("backend_timeout", words)
    if isinstance(error, aiohttp.ClientResponseError):
        return Broken(f"does not speak HTTP: {error.message}")
    return Interrupted("backend_interrupted", words)


def _connect_type(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls_failed"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns_failed"
    return "connect_refused" if error.os_error.errno == ECONNREFUSED else "connect_failed"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
