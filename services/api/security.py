"""The rim of the api: by which name it is called, whose page calls, and whose key it is, before all else."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from urllib.parse import quote

from loguru import logger
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api import problems
from services.api.access import Access, grant
from services.api.browsers import SAFE_METHODS, Browsers, Headers, readable_by
from services.api.gateway.dialects import ENDPOINTS, OPENAI, Dialect
from services.api.gateway.refusals import Refusal
from services.api.keyring import Keyring
from services.api.problems import NO_KEY, NOT_ALLOWED, Problem
from shared.config import ApiSettings
from shared.errors import StoreUnavailable
from shared.store.api_keys import Role

HEALTH = "/healthz"
"""What always answers: that the process lives is no secret, and whoever restarts it has no key."""
_READ = frozenset(
    {b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key", b"x-forwarded-for"}
    | {b"access-control-request-method", b"access-control-request-headers"}
)
_DIALECTS: dict[str, Dialect] = {endpoint.path: endpoint.dialect for endpoint in ENDPOINTS}
_CHALLENGE = 'Bearer realm="gpu-orchestrator"'
_CODES = {"no-key": "invalid_api_key"}
"""Where OpenAI has a code of its own for a problem."""
_SHOWN = 128
_SAID_EVERY_S = 1.0


class Rim:
    """Pure ASGI, around all of the app."""

    def __init__(self, app: ASGIApp, keyring: Keyring, settings: ApiSettings) -> None:
        self._app = app
        self._keyring = keyring
        self._browsers = Browsers(settings)
        self._log = _Refusals(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == HEALTH:
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            if name in _READ:
                headers.setdefault(name, []).append(value.decode("latin-1").strip())
        origin = self._browsers.allowed_origin(headers)
        if origin is not None:
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await self._browsers.preflight(origin, headers, send)
                return
            send = readable_by(origin, send)
        try:
            self._admit(scope, headers)
        except Problem as problem:
            self._log.say(scope, headers, problem)
            await _worded(problem, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Raises ``Problem`` (401, 403, 421, 503) unless the app may see this request."""
        self._browsers.check_host(headers)
        self._browsers.check_site(scope["method"], headers)
        if not self._keyring.in_force:
            return
        if not self._keyring.loaded:
            raise problems.unavailable(StoreUnavailable("it has not answered yet"))
        access = self._access(headers)
        if access.role is not Role.ADMIN and _needs_admin(scope["method"], scope["path"]):
            raise Problem(NOT_ALLOWED, f"this call needs a key of the role {Role.ADMIN}")
        grant(scope, access)

    def _access(self, headers: Headers) -> Access:
        presented = _presented(headers)
        if not presented:
            raise _no_key("no API key: send it as `Authorization: Bearer KEY`, or as `x-api-key: KEY`", "")
        access = self._keyring.access(presented[0]) if len(presented) == 1 else None
        if access is None:
            said = (
                "is not known or was revoked" if len(presented) == 1 else "came more than once, and differs"
            )
            raise _no_key(f"the API key {said}", ', error="invalid_token"')
        return access


class _Refusals:
    """Says in the log who was refused, once a second for each reason; never what was presented."""

    def __init__(self, settings: ApiSettings) -> None:
        self._proxies = tuple(ipaddress.ip_network(network) for network in settings.trusted_proxies)
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def say(self, scope: Scope, headers: Headers, problem: Problem) -> None:
        now, name = time.monotonic(), problem.kind.name
        unsaid = self._unsaid.pop(name, 0)
        if now - self._said_at.get(name, float("-inf")) < _SAID_EVERY_S:
            self._unsaid[name] = unsaid + 1
            return
        self._said_at[name] = now
        more = f" (and {unsaid} more before)" if unsaid else ""
        path, client = quote(scope["path"])[:_SHOWN], self._client(scope, headers)
        logger.info("{} {} from {}: {} {}{}", scope["method"], path, client, problem.kind.status, name, more)

    def _client(self, scope: Scope, headers: Headers) -> str:
        """Who is behind the proxies that are trusted: the last address that none of them is."""
        peer = scope.get("client")
        hops = [peer[0] if peer else "-"]
        for value in headers.get(b"x-forwarded-for", ()):
            hops[:0] = [hop.strip() for hop in value.split(",")]
        while len(hops) > 1 and self._is_proxy(hops[-1]):
            hops.pop()
        return hops[-1][:_SHOWN]

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)


def _presented(headers: Headers) -> Sequence[str]:
    """The different keys in a request."""
    found = {value for value in headers.get(b"x-api-key", ()) if value}
    for value in headers.get(b"authorization", ()):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            found.add(key.strip())
    return tuple(found)


def _needs_admin(method: str, path: str) -> bool:
    """Everybody reads, and hands in and cancels jobs; whatever else changes something is for admins."""
    if method in SAFE_METHODS or path in _DIALECTS:
        return False
    return path != "/v1/jobs" and not path.startswith("/v1/jobs/")


def _no_key(detail: str, why: str) -> Problem:
    return Problem(NO_KEY, detail, headers={"WWW-Authenticate": _CHALLENGE + why})


def dialect_of(path: str) -> Dialect | None:
    """The dialect in which errors at a path are worded, None for problem objects."""
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return OPENAI
    return _DIALECTS.get(path)


def _worded(problem: Problem, path: str) -> Response:
    dialect = dialect_of(path)
    if dialect is None:
        return problems.answer(problem, path)
    kind = problem.kind
    code = _CODES.get(kind.name, kind.name.replace("-", "_"))
    body = dialect.error_body(Refusal(kind.status, code, problem.detail))
    return Response(body, kind.status, headers=problem.headers, media_type="application/json")
