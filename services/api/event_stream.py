"""The events of one job as server-sent events: what has happened so far, then what happens, until its end."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Send

from services.api.problems import INVALID, Problem
from services.api.representations import whole
from services.api.state import ApiState
from services.api.waiting import Subscription
from shared.errors import StoreUnavailable
from shared.states import FINAL_EVENTS, FINAL_STATES
from shared.store.records import JobRecord, StreamEntry

PING_S = 15.0
"""Proxies close connections that are silent for a minute; a ping also shows that the client has left."""
ID_PATTERN = "^[0-9]{1,19}-[0-9]{1,19}$"
_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")
_SAME_END_MS = 60_000
"""A final event has the time of its job's end, unless the clock of Redis was set back: by less than this."""
_TRIMMED = b": earlier events of this job are kept no longer\n\n"
_NO_MORE = b": nothing more will come\n\n"
_PING = b": ping\n\n"
_AWAY = b": Redis does not answer: connect again to go on\n\n"
_STOPPING = b": this api stops: connect again to go on\n\n"
_OVERRUN = b": you read too slowly: connect again to go on\n\n"


class EventStream(StreamingResponse):
    """Closes its source at once when the client leaves, instead of whenever it is collected."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[bytes, None]) -> None:
        super().__init__(source, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._source = source

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._source):
            await super().stream_response(send)


class JobEvents:
    """One client's way through the events of one job."""

    def __init__(
        self, state: ApiState, record: JobRecord, last_event_id: str | None, *, ping_s: float = PING_S
    ) -> None:
        """Raises ``Problem`` for a Last-Event-ID that is none of ours."""
        self._state = state
        self._job_id = record.job_id
        self._ping_s = ping_s
        if last_event_id and not _ID.fullmatch(last_event_id):
            raise Problem(
                INVALID,
                "Last-Event-ID: is the id of an event that this stream sent, such as 1795430062071-0",
                field="Last-Event-ID",
            )
        first = record.fields.get("queued_event", "0-0")
        self._resumed = last_event_id is not None and _order(last_event_id) >= _order(first)
        # The stream is read from here on, and past it once the client has got the event of this very id.
        self._last = last_event_id if last_event_id is not None and self._resumed else first
        self._got_last = self._resumed
        self._over = False
        self._until_ms = _end_ms(record)

    async def nothing_left(self, record: JobRecord) -> bool:
        """Whether a client that comes back has already got all of an ended job: it need not come again."""
        if not self._resumed or record.state not in FINAL_STATES:
            return False
        async with aclosing(self._past()) as past:
            return await anext(past, None) is None

    async def stream(self) -> AsyncGenerator[bytes, None]:
        with self._state.feed.subscribe(self._job_id) as events:
            await self._state.feed.follows()
            try:
                if await self._trimmed():
                    yield _TRIMMED
                async for entry in self._past():
                    yield self._sent(entry)
                async for chunk in self._settled():
                    yield chunk
                while not self._over:
                    async for chunk in self._step(events):
                        yield chunk
            except StoreUnavailable:
                yield _AWAY

    async def _step(self, events: Subscription) -> AsyncGenerator[bytes, None]:
        entry = await events.next(self._ping_s)
        if entry is not None:
            if not self._got_last or _order(entry.id) > _order(self._last):
                yield self._sent(entry)
        elif events.closed:
            self._over = True
            yield _OVERRUN if events.overrun else _STOPPING
        else:
            yield _PING
            async for chunk in self._settled():
                yield chunk

    async def _settled(self) -> AsyncGenerator[bytes, None]:
        """The rest of a job that has ended without our hearing of it: its final event missed or trimmed."""
        if self._over:
            return
        record = await self._state.job(self._job_id)
        self._until_ms = None if record is None else _end_ms(record)
        if record is None or record.state in FINAL_STATES:
            async for missed in self._past():
                yield self._sent(missed)
            if not self._over:
                yield _NO_MORE
            self._over = True

    async def _past(self) -> AsyncGenerator[StreamEntry, None]:
        """The job's events that the client lacks, up to its final one or the stream's present end."""
        start = f"({self._last}" if self._got_last else self._last
        while True:
            async with self._state.store():
                page = await self._state.read_events(start)
            for entry in page:
                # Its final event is kept no longer: all the rest is other jobs'.
                if self._until_ms is not None and _order(entry.id)[0] > self._until_ms + _SAME_END_MS:
                    return
                if entry.fields.get("job_id") == self._job_id:
                    yield entry
                    if entry.fields.get("type") in FINAL_EVENTS:
                        return
            if not page:
                return
            start = f"({page[-1].id}"

    async def _trimmed(self) -> bool:
        """Whether events that this client has not got are gone from the stream."""
        async with self._state.store():
            page = await self._state.read_events(self._last)
        return not page or page[0].id != self._last

    def _sent(self, entry: StreamEntry) -> bytes:
        self._last = entry.id
        self._got_last = True
        kind = entry.fields.get("type", "")
        self._over = self._over or kind in FINAL_EVENTS
        return f"id: {entry.id}\nevent: {_line(kind)}\ndata: {json.dumps(dict(entry.fields))}\n\n".encode()


def _end_ms(record: JobRecord) -> int | None:
    """When an ended job ended, ms since 1970; None while it lives."""
    return whole(record.fields, "finished_ms") if record.state in FINAL_STATES else None


def _line(text: str) -> str:
    return " ".join(text.split())


def _order(entry_id: str) -> tuple[int, int]:
    match = _ID.fullmatch(entry_id)
    return (int(match[1]), int(match[2])) if match else (0, 0)
