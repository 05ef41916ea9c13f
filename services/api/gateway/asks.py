"""What a client asks for: its headers and its body, read within limits and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json, to_json
from starlette.types import Receive, Scope

from services.api.access import Access, access_of
from services.api.gateway import refusals
from services.api.gateway.dialects import Endpoint
from services.api.gateway.refusals import Refusal, invalid
from services.api.gateway.room import Share
from services.api.request_id import request_id_of
from shared.config import Settings
from shared.jobs import ANY_AGENT, AUTO
from shared.json_text import compact
from shared.limit import Limit
from shared.states import Mode
from shared.store.records import NewJob

_CHARS_PER_TOKEN = 4
"""The rule of thumb of ``shared.jobs``: an estimate that only ranks."""
_LONGEST_DEADLINE_S = 30 * 86_400
_LONGEST_NAME = 128
_MOST_TOKENS = 1_000_000
_MOST_HEADER_BYTES = 64 * 1024
"""The server itself sets no bound."""
WITHIN_S = 60.0
"""The longest that a body may take to come: what has come of it is held meanwhile."""
_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_HEADERS = frozenset({b"x-agent-type", b"x-priority", b"x-mode", b"x-deadline-s", b"content-length"})
_SET_BY_US = frozenset({"model", "stream", "stream_options"})


class ClientLeft(Exception):
    """The client left while it sent its body."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. ``model`` as the client wrote it; ``named`` is None where any model will do."""

    endpoint: Endpoint
    raw: bytes
    data: Mapping[str, JsonValue]
    model: str
    named: str | None
    agent_type: str | None
    stream: bool
    priority: int | None
    mode: Mode | None
    deadline_s: float | None
    access: Access | None
    request_id: str

    @property
    def target(self) -> str:
        """The queue it waits in."""
        return self.named or f"{AUTO}:{self.agent_type or ANY_AGENT}"

    @property
    def completion_body(self) -> dict[str, JsonValue]:
        """The body without what a ``CompletionCall`` sets."""
        return {name: value for name, value in self.data.items() if name not in _SET_BY_US}

    def body_for(self, upstream_name: str) -> bytes:
        """The body as it goes to a backend that calls the model ``upstream_name``."""
        if upstream_name == self.model:
            return self.raw
        return to_json({**self.data, "model": upstream_name})


async def read_ask(
    scope: Scope, receive: Receive, endpoint: Endpoint, limit: int, share: Share, within_s: float = WITHIN_S
) -> Ask:
    """Read a request whole; raises ``Refusal`` (400, 408, 413, 431, 503), and ``ClientLeft``."""
    headers = _headers(scope)
    try:
        with Limit(within_s):
            raw = await _read_body(receive, headers.get(b"content-length", ""), limit, share)
    except TimeoutError:
        raise refusals.too_slow(within_s) from None
    share.take_values(raw)
    try:
        data: JsonValue = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, "invalid_json", f"the body is not JSON that can be read: {error}") from None
    if not isinstance(data, dict):
        raise Refusal(400, "invalid_json", f'the body must be a JSON object such as {{"model": "{AUTO}"}}')
    stream = data.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise invalid("stream", "must be true or false")
    _check_input(endpoint, data)
    model, named, agent_type = _model(data, headers.get(b"x-agent-type"))
    return Ask(
        endpoint=endpoint,
        raw=raw,
        data=data,
        model=model,
        named=named,
        agent_type=agent_type,
        stream=bool(stream) and endpoint.streams,
        priority=_priority(headers.get(b"x-priority")),
        mode=_mode(headers.get(b"x-mode")),
        deadline_s=_deadline(headers.get(b"x-deadline-s")),
        access=access_of(scope),
        request_id=request_id_of(scope),
    )


def attached_job(ask: Ask, settings: Settings, job_id: str, holder: str) -> NewJob:
    """The job that an ask becomes; its body stays in this process."""
    defaults = settings.jobs
    priority = defaults.priority if ask.priority is None else ask.priority
    caller = _caller(ask.data)
    if ask.access is not None:
        caller = ask.access.caller(caller)
    fields = {
        "model": ask.named or "",
        "agent_type": ask.agent_type or "",
        "mode": ask.mode or "",
        "priority": str(priority),
        "prompt_tokens": str(_prompt_tokens(ask)),
        "max_tokens": str(_max_tokens(ask.data) or defaults.max_tokens),
        "min_context_tokens": "0",
        "prefer_llama_cpp": "0",
        "fallback": "1" if ask.named is None else "0",
        "max_attempts": str(defaults.max_attempts),
        "caller": caller or "",
        "metadata": "",
        "request_id": ask.request_id,
    }
    return NewJob(
        id=job_id,
        target=ask.target,
        boost_ms=round(priority * settings.queue.priority_step_s * 1000),
        deadline_in_ms=round((ask.deadline_s or defaults.deadline_s) * 1000),
        fields=fields,
        body=b"",
        caller=caller,
        attached_to=holder,
        limits=None if ask.access is None else ask.access.limits,
    )


def _headers(scope: Scope) -> dict[bytes, str]:
    size, found = 0, {}
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        if name in _HEADERS:
            found[name] = value.decode("latin-1").strip()
    if size > _MOST_HEADER_BYTES:
        raise Refusal(
            431,
            "headers_too_large",
            f"the headers have {size} bytes, more than {_MOST_HEADER_BYTES}: shorten them",
        )
    return found


async def _read_body(receive: Receive, declared: str, limit: int, share: Share) -> bytes:
    if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        piece: bytes = message.get("body", b"")
        if len(body) + len(piece) > limit:
            raise _too_large(limit)
        share.take(len(piece))
        ends = not message.get("more_body", False)
        if ends and not body:
            return piece
        body += piece
        if ends:
            return bytes(body)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, "body_too_large", f"the body has more than api.max_body_bytes = {limit} bytes: shorten it"
    )


def _check_input(endpoint: Endpoint, data: Mapping[str, JsonValue]) -> None:
    given = data.get(endpoint.needs)
    if not given:
        raise invalid(endpoint.needs, f"is missing or empty: {endpoint.path} needs it")
    if endpoint.chat:
        if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
            raise invalid("messages", 'must be a list such as [{"role": "user", "content": "hi"}]')
    elif "messages" in data and endpoint.aggregates:
        raise invalid("messages", "belongs to /v1/chat/completions: send it there, or leave it out")


def _model(data: Mapping[str, JsonValue], header: str | None) -> tuple[str, str | None, str | None]:
    """What was asked for: the name as written, the named model, the agent type."""
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model", f'must be a text: a name that GET /v1/models lists, or "{AUTO}" for any')
    if len(model) > _LONGEST_NAME:
        raise invalid("model", f"has more than {_LONGEST_NAME} characters: GET /v1/models lists the names")
    if header is not None and not _AGENT.fullmatch(header):
        raise invalid("X-Agent-Type", "must be 1 to 64 letters, digits, '.', '_' or '-', such as Chat")
    if model == AUTO:
        return model, None, header
    if not model.startswith(f"{AUTO}:"):
        return model, model, None
    agent_type = model.removeprefix(f"{AUTO}:")
    if not _AGENT.fullmatch(agent_type):
        raise invalid("model", f"{model!r} names no agent type: write it as in {AUTO}:Chat")
    if header not in (None, agent_type):
        raise invalid("X-Agent-Type", f"is {header!r}, but model says {model!r}: leave one of them out")
    return model, None, agent_type


def _priority(value: str | None) -> int | None:
    if value is None:
        return None
    if len(value) != 1 or value not in "0123456789":
        raise invalid("X-Priority", f"is {_shown(value)}: give a whole number from 0 to 9, 9 is most urgent")
    return int(value)


def _mode(value: str | None) -> Mode | None:
    if value is None:
        return None
    if value not in tuple(Mode):
        raise invalid("X-Mode", f"is {_shown(value)}: give {' or '.join(Mode)}")
    return Mode(value)


def _deadline(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_DEADLINE_S:
        raise invalid("X-Deadline-S", f"is {_shown(value)}: give seconds, up to {_LONGEST_DEADLINE_S}")
    return seconds


def _shown(value: str) -> str:
    return repr(value[:64])


def _caller(data: Mapping[str, JsonValue]) -> str | None:
    """Whom the client works for, which decides whose turn it is; a name too long to keep is none."""
    user = data.get("user")
    return user if isinstance(user, str) and 1 <= len(user) <= _LONGEST_NAME else None


def _max_tokens(data: Mapping[str, JsonValue]) -> int | None:
    for name in _MAX_TOKENS:
        value = data.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return min(value, _MOST_TOKENS)
    return None


def _prompt_tokens(ask: Ask) -> int:
    given: Any = ask.data[ask.endpoint.needs]
    if isinstance(given, str):
        return max(1, len(given) // _CHARS_PER_TOKEN)
    if isinstance(given[0] if isinstance(given, list) else None, int):
        return len(given)  # tokens already
    return max(1, len(compact(given).decode()) // _CHARS_PER_TOKEN)
