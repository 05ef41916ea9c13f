"""The HTTP session that all backends share, and what its failures mean."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from errno import ECONNREFUSED

import aiohttp

from shared.backends.errors import BackendError, Broken, Interrupted, NotSent
from shared.masking import keep_secret
from shared.request_ids import HEADER
from shared.states import BackendType

_KEPT_S = 2.0


def open_session(*, reuse_s: float = 0.0) -> aiohttp.ClientSession:
    """A session for any number of backends: no connection limit, no total time-out, no cookies.

    A connection carries one request, unless told otherwise. llama.cpp announces ``Keep-Alive`` and yet closes
    0.1 ms after the end of a stream, and every server closes idle connections some day: a request written
    into a closing connection may or may not have run, which a new connection never leaves open.
    ``reuse_s`` lets one that was idle for less carry another request: for reading alone, which may be done
    again, and for servers that are known to keep it open for longer.
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


@dataclass(frozen=True, slots=True)
class Sessions:
    """Two sessions: ``fresh`` opens a connection for every request, ``kept`` uses idle ones again."""

    fresh: aiohttp.ClientSession
    kept: aiohttp.ClientSession

    def of(self, backend: BackendType) -> aiohttp.ClientSession:
        """The session for calls that make a backend work.

        vLLM keeps an idle connection open for longer than we do (uvicorn's 5 s), so one that we still have
        is closing only if vLLM itself is; llama.cpp closes after every stream.
        """
        return self.kept if backend is BackendType.VLLM else self.fresh


@asynccontextmanager
async def open_sessions() -> AsyncIterator[Sessions]:
    """Both, closed in the end."""
    async with open_session() as fresh, open_session(reuse_s=_KEPT_S) as kept:
        yield Sessions(fresh, kept)


def root_url(base_url: str) -> str:
    """A backend's address without the ``/v1`` that people copy along, and without a trailing slash."""
    root = base_url.rstrip("/")
    return root if root.endswith("//v1") else root.removesuffix("/v1").rstrip("/")


def headers(api_key: str | None, request_id: str = "") -> dict[str, str]:
    """The headers that every call to a backend carries, and the id of the request that it is made for."""
    if api_key:
        keep_secret(api_key)  # a backend that quotes our request in its error must not make it public
    found = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    if request_id:
        found[HEADER] = request_id
    return found


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
