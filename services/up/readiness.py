"""Asks the api whether everything is ready, without a proxy that the environment may name."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException

from shared.config import ApiSettings

_TIMEOUT_S = 1.0
_SHOWN_BYTES = 500


def reachable_host(settings: ApiSettings) -> str:
    """The address under which this machine reaches the api: a loopback one where it listens on all."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)


def base_url(settings: ApiSettings) -> str:
    host = reachable_host(settings)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def missing(settings: ApiSettings) -> str | None:
    """What ``GET /readyz`` says is missing, ``None`` once it answers 200."""
    connection = HTTPConnection(reachable_host(settings), settings.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = " ".join(response.read(_SHOWN_BYTES).decode("utf-8", "replace").split())
    except (OSError, HTTPException) as error:
        return f"the api does not answer on {base_url(settings)}/readyz ({error or type(error).__name__})"
    finally:
        connection.close()
    return None if response.status == 200 else f"/readyz says {response.status}: {body}"
