"""Asks a listener on this machine how it is, without a proxy that the environment may name."""

from __future__ import annotations

from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

from shared.config import ApiSettings

_TIMEOUT_S = 1.0
_SHOWN_BYTES = 500


def reachable_host(host: str) -> str:
    """The address under which this machine reaches a listener: a loopback one where it listens on all."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def base_url(settings: ApiSettings) -> str:
    return _url(reachable_host(settings.host), settings.port)


def missing(settings: ApiSettings) -> str | None:
    """What ``GET /readyz`` says is missing, ``None`` once it answers 200.

    Where it wants a key, which nobody gave us, that the api answers at all must do.
    """
    status, said = _get("the api", settings.host, settings.port, "/readyz")
    if status == HTTPStatus.UNAUTHORIZED:
        return unanswered("the api", settings.host, settings.port, "/healthz")
    return said


def unanswered(who: str, host: str, port: int, path: str) -> str | None:
    """Why a listener's ``GET path`` can't be had, in one line; ``None`` if it answers 200."""
    return _get(who, host, port, path)[1]


def _get(who: str, host: str, port: int, path: str) -> tuple[int | None, str | None]:
    host = reachable_host(host)
    connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = " ".join(response.read(_SHOWN_BYTES).decode("utf-8", "replace").split())
    except (OSError, HTTPException) as error:
        return None, f"{who} does not answer on {_url(host, port)}{path} ({error or type(error).__name__})"
    finally:
        connection.close()
    said = None if response.status == HTTPStatus.OK else f"{path} says {response.status}: {body}"
    return response.status, said


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
