"""Any call to a backend whose answer is passed on as it comes."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.backends.completion import refusal
from shared.backends.http import HttpClient
from shared.backends.request import headers, root_url
from shared.backends.response import Response
from shared.states import BackendType


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


async def open_call(http: HttpClient, backend: BackendType, call: RelayedCall) -> Response:
    """The backend's answer of status 200, its body still to be read; close it in the end.

    Raises the ``BackendError`` that any other answer stands for, with its body in ``answer``. Closing it
    before the end of the body closes the connection at once.
    """
    response = await http.post(
        root_url(call.base_url) + call.path,
        call.body,
        headers(call.api_key, call.request_id),
        connect_timeout_s=call.connect_timeout_s,
        idle_timeout_s=call.idle_timeout_s,
        keep=backend is BackendType.VLLM,
    )
    if response.status == 200:
        return response
    try:
        raise await refusal(response)
    finally:
        response.close()
