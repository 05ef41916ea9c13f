"""GET requests of a probe: one deadline for all of them, every failure as a ``BackendError``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ECONNREFUSED

import aiohttp
from pydantic import JsonValue

from shared.backends.errors import BackendError, Broken, Interrupted, NotSent, error_detail, from_status
from shared.backends.request import headers, root_url

_BODY_BYTES = 4 * 2**20
"""Far above the largest answer seen (vLLM's /metrics: 52 KB); more is not a backend's answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A body with status 200."""

    text: str
    simulated: bool

    def json(self) -> JsonValue:
        """The body as JSON; raises ``Broken`` if it isn't."""
        try:
            data: JsonValue = json.loads(self.text)
        except ValueError:
            raise Broken(f"answered what is not JSON: {self.text}", 200) from None
        return data

    def object(self) -> Mapping[str, JsonValue]:
        """The body as a JSON object; raises ``Broken`` if it isn't."""
        data = self.json()
        if not isinstance(data, dict):
            raise Broken(f"answered what is no JSON object: {self.text}", 200)
        return data


@dataclass(slots=True)
class Fetcher:
    """GETs below one backend's address, all within ``timeout_s`` of its creation."""

    session: aiohttp.ClientSession
    base_url: str
    timeout_s: float
    api_key: str | None = field(default=None, repr=False)
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_ms(self) -> float:
        return (time.monotonic() - self.started) * 1000.0

    async def get(self, path: str) -> Answer:
        """The answer to ``GET <root><path>``; raises a ``BackendError`` for anything but status 200."""
        left_s = max(0.001, self.timeout_s - self.elapsed_ms / 1000.0)
        with _backend_errors():
            async with self.session.get(
                root_url(self.base_url) + path,
                headers=headers(self.api_key),
                timeout=aiohttp.ClientTimeout(total=left_s, sock_connect=left_s),
                allow_redirects=False,
            ) as response:
                body = await _read(response)
                if response.status != 200:
                    raise from_status(response.status, error_detail(body) or response.reason or "no words")
                return Answer(body.decode(errors="replace"), "X-Simulated" in response.headers)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _BODY_BYTES:
            response.close()
            raise Broken(f"answered more than {_BODY_BYTES} bytes")
    return bytes(body)


@contextmanager
def _backend_errors() -> Iterator[None]:
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
