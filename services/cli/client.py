"""Calls to the orchestrator's HTTP API, without a proxy that the environment may name."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from services.cli.failures import Refused, Unreachable, WrongUsage

KEY_VARIABLE = "ORCH_API_KEY"
URL_VARIABLE = "ORCH_API_URL"
ANSWER_S = 30.0
"""Longest silence before an answer to a call that does not wait for anything."""
_TICK_S = 0.1
_SHOWN_CHARS = 2000
_BAD_GATEWAYS = (502, 503, 504)

Json = dict[str, Any]
Query = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """``body`` is the parsed JSON, empty where there is none."""

    status: int
    body: Json


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    target: str
    body: Json | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    silence_s: float | None = ANSWER_S
    meanwhile: Callable[[], None] | None = None


class Lines:
    """The lines of an answer that goes on; ``empty``: there will be none."""

    def __init__(self, response: HTTPResponse, wire: socket.socket) -> None:
        self._response = response
        self._wire = wire
        self.empty = response.status == 204

    def next(self, within_s: float) -> str:
        """The next line with its break, empty at the end; ``TimeoutError`` where none comes in time."""
        self._wire.settimeout(within_s)
        return self._response.readline().decode("utf-8", "replace")


class Api:
    """One orchestrator; every method raises ``Refused`` or ``Unreachable`` with a line for a person."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Raises ``WrongUsage`` for a URL or a key that can be none."""
        self._parts = _checked(url)
        self.url = url.rstrip("/")
        self._headers = {"Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {_usable(key)}"

    def get(self, path: str, query: Query | None = None, *, silence_s: float | None = ANSWER_S) -> Json:
        return self.call("GET", path, query, silence_s=silence_s).body

    def call(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: Json | None = None,
        *,
        silence_s: float | None = ANSWER_S,
        headers: Mapping[str, str] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Answer:
        """One call; ``meanwhile`` is called ten times a second until the answer comes."""
        call = _Call(method, self._target(path, query), body, headers or {}, silence_s, meanwhile)
        with self._asked(call) as (response, _):
            return self._answer(response)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[Lines]:
        """An answer that is read line by line as it comes."""
        with self._asked(_Call("GET", self._target(path, None), headers=headers)) as (response, connection):
            if response.status not in (200, 204):
                self._answer(response)
            yield Lines(response, connection)

    @contextmanager
    def _asked(self, call: _Call) -> Iterator[tuple[HTTPResponse, socket.socket]]:
        connection = self._connection(call.silence_s)
        headers = {**self._headers, **call.headers}
        data = None
        if call.body is not None:
            data, headers["Content-Type"] = json.dumps(call.body).encode(), "application/json"
        try:
            connection.request(call.method, call.target, data, headers)
            wire = connection.sock
            if call.meanwhile is not None:
                _wait(wire, call.meanwhile)
            with connection.getresponse() as response:
                yield response, wire
        except (OSError, HTTPException, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise self._unreachable(reason) from None
        finally:
            connection.close()

    def _connection(self, silence_s: float | None) -> HTTPConnection:
        parts = self._parts
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(str(parts.hostname), parts.port, timeout=silence_s)

    def _target(self, path: str, query: Query | None) -> str:
        values = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in (query or {}).items()
            if value is not None
        }
        return self._parts.path.rstrip("/") + path + (f"?{urlencode(values)}" if values else "")

    def _answer(self, response: HTTPResponse) -> Answer:
        raw = response.read()
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Unreachable(f"what answers at {self.url} is no orchestrator: see --url and {URL_VARIABLE}")
        if response.status >= 400:
            raise self._problem(response.status, body)
        return Answer(response.status, body)

    def _problem(self, status: int, body: Json) -> Refused | Unreachable:
        detail = str(body.get("detail") or body.get("title") or body)[:_SHOWN_CHARS]
        if status in _BAD_GATEWAYS:
            return Unreachable(f"the orchestrator at {self.url} cannot serve now: {detail}")
        if status in (401, 403):
            return Refused(f"{detail} (the key comes from {KEY_VARIABLE})")
        return Refused(detail)

    def _unreachable(self, reason: str) -> Unreachable:
        return Unreachable(
            f"no orchestrator answers at {self.url} ({reason}): start it with `gpu-orchestrator up`, "
            f"or name another with --url or {URL_VARIABLE}"
        )


def open_api(url: str | None) -> Api:
    """The api that was named, else the one of the settings, with the key of the environment."""
    return Api(url or settings_url(), os.environ.get(KEY_VARIABLE, "").strip() or None)


def settings_url() -> str:
    """Where the settings' api is reached from this machine."""
    from services.cli.settings import load

    api = load().api
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(api.host, api.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{api.port}"


def path_of(*steps: str) -> str:
    """A path of the API with whatever its steps hold escaped."""
    return "/" + "/".join(quote(step, safe="") for step in steps)


def _wait(connection: socket.socket, meanwhile: Callable[[], None]) -> None:
    while not select.select([connection], [], [], _TICK_S)[0]:
        meanwhile()


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        usable = False
    if not usable or not url.isascii() or " " in url:
        raise WrongUsage(f"--url: {url!r} is no address such as http://127.0.0.1:8000")
    if parts.username is not None or parts.query or parts.fragment:
        raise WrongUsage(f"--url: leave out user, password, '?' and '#'; a key goes into {KEY_VARIABLE}")
    return parts


def _usable(key: str) -> str:
    if not all("!" <= char <= "~" for char in key):
        raise WrongUsage(f"{KEY_VARIABLE} holds characters that no key has: check how it was set")
    return key
