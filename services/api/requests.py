"""What arrives: the body and the headers of POST /v1/jobs, read within limits and checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import JsonValue
from pydantic_core import from_json

from services.api.problems import INVALID, MALFORMED, TOO_LARGE, Problem
from shared.jobs import JobRequest, parse_job, parse_json
from shared.submission import request_digest

_KEY_CHARS = 255
KEY_SCHEMA: dict[str, Any] = {
    "type": "string",
    # A header loses the spaces around it.
    "pattern": "^[!-~]([ -~]*[!-~])?$",
    "minLength": 1,
    "maxLength": _KEY_CHARS,
}
"""What an ``Idempotency-Key`` may be, for OpenAPI."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key, hashed with its caller, and the hash of the request that it stands for."""

    key: str
    digest: str


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises ``Problem`` (413) once it is known to be longer than ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def parse_request(body: bytes) -> JobRequest:
    """The job that a body asks for; raises ``Problem`` (400) or ``InvalidRequest`` (422)."""
    job = parse_json(body)
    if job is not None:
        return job
    try:
        data: JsonValue = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(MALFORMED, f"the body is not JSON that can be read: {error}") from None
    return parse_job(data)


def idempotency(header: str | None, job: JobRequest, body: bytes) -> Idempotency | None:
    """What the ``Idempotency-Key`` header stands for; raises ``Problem`` (422) if it is none."""
    if header is None:
        return None
    if not 1 <= len(header) <= _KEY_CHARS or not all(" " <= char <= "~" for char in header):
        raise Problem(
            INVALID,
            f"Idempotency-Key: give 1 to {_KEY_CHARS} printable ASCII characters, such as a UUID",
            field="Idempotency-Key",
        )
    # Two callers may choose the same key without meaning the same job.
    scoped = hashlib.sha256(f"{job.caller or ''}\0{header}".encode()).hexdigest()
    return Idempotency(scoped, request_digest(body))


def _too_large(limit: int) -> Problem:
    return Problem(TOO_LARGE, f"the body has more than api.max_body_bytes = {limit} bytes: shorten it")
