"""One job's events as they happen, over connections that may break, and its end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from services.cli.client import Api, Json, Lines, path_of
from services.cli.failures import TimedOut, Unreachable
from shared.states import FINAL_EVENTS

_SILENCE_S = 40.0
"""The api sends a ping every 15 s: without two of them the connection is taken for dead."""
_LEAST_S = 0.01
"""A socket's time-out of 0 would mean not to wait at all."""
_NO_MORE = ": nothing more will come"
_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Before each new try in a row; an event between two starts from the first again."""


@dataclass(frozen=True, slots=True)
class Event:
    """One transition; ``id`` is its place in the stream of events."""

    id: str
    type: str
    fields: Json

    @property
    def final(self) -> bool:
        return self.type in FINAL_EVENTS


def wait_for_end(
    api: Api, job_id: str, timeout_s: float | None, seen: Callable[[Event], None] | None = None
) -> Json:
    """The job once it has ended; raises ``TimedOut`` where that takes longer than ``timeout_s``."""
    for event in follow(api, job_id, timeout_s):
        if seen is not None:
            seen(event)
    return api.get(path_of("v1", "jobs", job_id))


def follow(api: Api, job_id: str, timeout_s: float | None = None) -> Iterator[Event]:
    """The job's events so far, then those that come, up to its end.

    Goes on over broken connections where it was cut. Raises ``TimedOut`` after ``timeout_s``, ``Refused``
    for an unknown job and ``Unreachable`` once the api stays away.
    """
    stream = _JobStream(api, job_id, None if timeout_s is None else time.monotonic() + timeout_s)
    failures = 0
    while not stream.over:
        try:
            for event in stream.events():
                failures = 0
                yield event
        except Unreachable:
            stream.require_time()
            # An api that never answered is down; one that did may be starting again.
            if not stream.begun or failures == len(_PAUSES_S):
                raise
        if not stream.over:
            stream.pause(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1


class _JobStream:
    """One job's events over as many connections as it takes."""

    def __init__(self, api: Api, job_id: str, limit: float | None) -> None:
        self._api = api
        self._job_id = job_id
        self._limit = limit
        self._last: str | None = None
        self.begun = False
        self.over = False

    def events(self) -> Iterator[Event]:
        """Those of one connection; raises ``Unreachable`` where it breaks."""
        headers = {"Accept": "text/event-stream"}
        if self._last is not None:
            headers["Last-Event-ID"] = self._last
        with self._api.stream(path_of("v1", "jobs", self._job_id, "events"), headers) as lines:
            self.begun = True
            self.over = lines.empty
            for event in self._parsed(lines):
                self._last, self.over = event.id, event.final
                yield event

    def require_time(self) -> None:
        """Raise ``TimedOut`` where the time is up."""
        if self._left_s() <= 0:
            raise TimedOut(f"job {self._job_id} has not ended in that time, and goes on")

    def pause(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self._left_s())))
        self.require_time()

    def _left_s(self) -> float:
        return math.inf if self._limit is None else self._limit - time.monotonic()

    def _parsed(self, lines: Lines) -> Iterator[Event]:
        found: dict[str, str] = {}
        while not self.over:
            line = lines.next(max(_LEAST_S, min(_SILENCE_S, self._left_s())))
            if line.startswith(_NO_MORE):
                self.over = True
            elif not line.endswith("\n"):
                return
            elif line.strip():
                name, _, value = line.rstrip("\r\n").partition(":")
                found[name] = value.removeprefix(" ")
            elif "data" in found:
                yield Event(found.get("id", ""), found.get("event", ""), json.loads(found["data"]))
                found = {}
            self.require_time()
