"""The task of every peer: one POST to the backend over a kept connection, the answer read to its end."""

from __future__ import annotations

import http.client
import json
import threading
from urllib.parse import urlsplit

import aiohttp

from benchmarks.pipeline_parts.peer_apps.door import BACKEND_URL, Payload

_TIMEOUT_S = 60.0


class AsyncCalls:
    """For queues on asyncio; the session is opened in the loop of the first call and lives as long as it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def complete(self, payload: Payload) -> str:
        """The streamed answer; raises ``aiohttp.ClientError`` unless it is a 200."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        async with self._session.post(f"{BACKEND_URL}/v1/completions", json=payload) as answer:
            answer.raise_for_status()
            return (await answer.read()).decode()


class ThreadCalls:
    """For queues on threads: a connection for each, of the standard library (requests costs more)."""

    def __init__(self) -> None:
        self._own = threading.local()

    def complete(self, payload: Payload) -> str:
        """The streamed answer; raises ``http.client.HTTPException`` or ``OSError``."""
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            address = urlsplit(BACKEND_URL)
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
            self._own.connection = connection
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(payload), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            body = answer.read()
        except (http.client.HTTPException, OSError):
            connection.close()
            raise
        if answer.status != 200:
            raise http.client.HTTPException(f"the backend answered {answer.status}")
        return body.decode()
