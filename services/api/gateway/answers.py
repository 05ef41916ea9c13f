"""The call of one attempt: the backend's answer passed on as it comes, or put together."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.api.gateway.asks import Ask
from services.api.gateway.client import STREAM_HEADERS, Client, Headers
from services.api.gateway.outcomes import measured
from services.api.gateway.pieces import Ending, Events, Renamer, aborted, error_in, is_comment, was_aborted
from shared.backends.completion import Completion, CompletionCall, complete
from shared.backends.errors import Broken
from shared.backends.http import HttpClient
from shared.backends.relay import RelayedCall, open_call
from shared.backends.response import Response
from shared.config import Settings
from shared.json_text import compact
from shared.request_ids import at_backend
from shared.states import BackendType
from shared.store.grants import Grant

_EVENT_STREAM = "text/event-stream"
_JSON = (b"content-type", b"application/json")
_END = b"data: [DONE]\n\n"
_HEAD_BYTES = 4 * 1024
_TAIL_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt at an answer. ``ready`` is awaited right before the first byte goes out, with the
    monotonic time at which the backend had delivered it; it answers with the headers to send.
    """

    http: HttpClient
    settings: Settings
    ask: Ask
    client: Client
    grant: Grant
    public_name: str
    ready: Callable[[float], Awaitable[Headers]]

    async def run(self) -> Completion:
        """Call the backend and answer the client; raises a ``BackendError``."""
        ask = self.ask
        if ask.endpoint.aggregates and not ask.stream and self.grant.backend is BackendType.LLAMA_CPP:
            return await self._put_together()
        started = _now()
        response = await open_call(self.http, self.grant.backend, self._call())
        try:
            if ask.stream and response.content_type == _EVENT_STREAM:
                return await self._relay(response, started)
            return await self._pass_on(response, started)
        finally:
            response.close()

    @property
    def _api_key(self) -> str | None:
        name = self.grant.api_key_env
        return os.environ.get(name) if name else None

    @property
    def _request_id(self) -> str:
        grant = self.grant
        return at_backend(self.ask.request_id, grant.backend, grant.job_id, grant.attempt)

    def _call(self) -> RelayedCall:
        router = self.settings.router
        return RelayedCall(
            base_url=self.grant.url,
            path=self.ask.endpoint.path,
            body=self.ask.body_for(self.grant.upstream_name),
            api_key=self._api_key,
            connect_timeout_s=router.connect_timeout_s,
            idle_timeout_s=router.idle_timeout_s,
            request_id=self._request_id,
        )

    def _renamer(self) -> Renamer | None:
        upstream = self.grant.upstream_name
        return None if upstream == self.public_name else Renamer(upstream, self.public_name)

    async def _put_together(self) -> Completion:
        """For clients that do not stream: llama.cpp goes on for a gone client unless it streams."""
        router = self.settings.router
        call = CompletionCall(
            base_url=self.grant.url,
            backend=self.grant.backend,
            upstream_name=self.grant.upstream_name,
            body=self.ask.completion_body,
            api_key=self._api_key,
            connect_timeout_s=router.connect_timeout_s,
            idle_timeout_s=router.idle_timeout_s,
            max_result_bytes=self.settings.jobs.max_result_bytes,
            request_id=self._request_id,
        )

        async def answer(completion: Completion) -> None:
            ended = _now()
            response = completion.response
            if response.get("model") == self.grant.upstream_name:
                response["model"] = self.public_name
            body = compact(response)
            await self.client.whole(200, body, [_JSON, *await self.ready(ended)])

        return await complete(self.http, call, on_answer=answer)

    async def _relay(self, response: Response, started: float) -> Completion:
        client, events, renamer = self.client, Events(), self._renamer()
        ending = Ending(self.ask.endpoint.dialect)
        first: float | None = None
        while chunk := await response.readany():
            piece = events.feed(chunk)
            if not piece or (first is None and is_comment(piece)):
                continue
            ending.see(piece)
            if first is None:
                first = _now()
                await self._open_stream(piece, first)
            if piece.endswith(_END):
                break
            await client.relay(renamer.feed(piece) if renamer else piece)
        else:
            piece = events.close()
            ending.see(piece)
        error = ending.told_error()
        if error is None:
            ending.check()
        if first is None:
            await self._open_stream(piece, _now())
        await client.relay(renamer.feed(piece) + renamer.close() if renamer else piece, last=True)
        if error is not None:
            raise error  # the client has read it
        total_ms = (_now() - started) * 1000
        response.settle()
        return measured(ending.tail, None if first is None else (first - started) * 1000, total_ms)

    async def _open_stream(self, piece: bytes, at: float) -> None:
        """The headers of a stream whose beginning is no error: one that is can be tried again elsewhere."""
        error = error_in(piece)
        if error is not None:
            raise error
        headers = await self.ready(at)
        if not self.client.begun:
            await self.client.begin(200, [*STREAM_HEADERS, *headers])

    async def _pass_on(self, response: Response, started: float) -> Completion:
        """An answer that is no stream: held until it is complete, so that a failure can be tried again."""
        if self.client.begun:
            raise Broken(f"answered {response.content_type} where an event stream was asked for", 200)
        renamer = self._renamer()
        said = response.header("Content-Type") or ""  # a backend may have put any bytes there
        content_type = (b"content-type", said.encode("latin-1", "replace") or _JSON[1])
        held, head, tail, begun = bytearray(), b"", b"", False
        while chunk := await response.readany():
            held += chunk
            if len(held) <= self.settings.jobs.max_result_bytes:
                continue
            if not begun:
                begun = True
                head = bytes(held[:_HEAD_BYTES])
                await self.client.begin(200, [content_type, *await self.ready(_now())])
            tail = bytes(held[-_TAIL_BYTES:])
            await self.client.relay(renamer.feed(bytes(held)) if renamer else bytes(held))
            held.clear()
        ended, body = _now(), bytes(held)
        tail = (tail + body)[-_TAIL_BYTES:]
        if was_aborted(tail):
            raise aborted()
        sent = renamer.feed(body) + renamer.close() if renamer else body
        if begun:
            await self.client.relay(sent, last=True)
        else:
            head = body[: max(0, len(body) - _TAIL_BYTES)][:_HEAD_BYTES]
            await self.client.whole(200, sent, [content_type, *await self.ready(ended)])
        return measured(head + b"\n" + tail, None, (ended - started) * 1000)


def _now() -> float:
    return time.monotonic()  # the loop's own clock ticks in whole ms
