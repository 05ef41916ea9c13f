"""Any call to a backend whose answer is passed on as it comes."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp

from shared.backends.completion import SETTLE_S, refusal
from shared.backends.session import Sessions, backend_errors, headers, root_url
from shared.states import BackendType

_AS_JSON = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
"""What is compressed could not be looked into on its way."""
_WHOLE_BYTES = 2**20
"""A body longer than this is written in pieces: in one, it would hold up all others."""


@dataclass(frozen=True, slots=True)
class RelayedCall:
    """What to send where. ``body`` is JSON as it goes out, ``path`` such as ``/v1/embeddings``.

    ``idle_timeout_s`` is the longest silence before the headers or between bytes.
    """

    base_url: str
    path: str
    body: bytes = field(repr=False)
    api_key: str | None = field(repr=False)
    connect_timeout_s: float
    idle_timeout_s: float
    request_id: str = ""


@asynccontextmanager
async def open_call(
    sessions: Sessions, backend: BackendType, call: RelayedCall
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The backend's answer of status 200, its body still to be read.

    A connection that breaks before the first byte of an answer may have been an idle one that the server was
    closing: the call is made once more, on a new one. Raises the ``BackendError`` that any other answer
    stands for, with its body in ``answer``. Leaving before the end of the body, by whatever way, closes the
    connection at once.
    """
    timeout = aiohttp.ClientTimeout(
        connect=call.connect_timeout_s, sock_connect=call.connect_timeout_s, sock_read=call.idle_timeout_s
    )

    async def post(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        return await session.post(
            root_url(call.base_url) + call.path,
            data=call.body if len(call.body) <= _WHOLE_BYTES else io.BytesIO(call.body),
            headers={**_AS_JSON, **headers(call.api_key, call.request_id)},
            timeout=timeout,
            allow_redirects=False,
        )

    session = sessions.of(backend)
    with backend_errors():
        try:
            response = await post(session)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if session is sessions.fresh or isinstance(error, aiohttp.ClientConnectorError):
                raise
            response = await post(sessions.fresh)
    try:
        if response.status != 200:
            raise await refusal(response)
        yield response
    finally:
        response.close()


async def settle(response: aiohttp.ClientResponse) -> None:
    """Read a complete answer on to the end of its connection, for a moment: see ``completion``."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(SETTLE_S):
            while await response.content.readany():
                pass
