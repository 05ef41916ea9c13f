"""The aiohttp session that a monitor's probes share."""

from __future__ import annotations

import aiohttp


def open_session(*, reuse_s: float = 0.0) -> aiohttp.ClientSession:
    """A session for any number of backends: no connection limit, no total time-out, no cookies.

    A connection carries one request, unless told otherwise: every server closes idle connections some day.
    ``reuse_s`` lets one that was idle for less carry another request: for reading alone, which may be done
    again. Close the session with ``await session.close()``.
    """
    connector = (
        aiohttp.TCPConnector(limit=0, keepalive_timeout=reuse_s, ttl_dns_cache=30)
        if reuse_s
        else aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=30)
    )
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar()
    )
