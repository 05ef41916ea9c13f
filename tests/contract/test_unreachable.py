"""Backends that can't be reached: nothing was sent, so nothing ran."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from shared.backends.completion import complete
from shared.backends.errors import NotSent
from tests.kit.backends import call
from tests.kit.configs import free_ports


@pytest.mark.parametrize(
    ("url", "error_type"),
    [
        ("http://127.0.0.1:{port}", "connect_refused"),
        ("http://localhost:{port}", "connect_refused"),
        ("ftp://127.0.0.1:1", "bad_url"),
        ("http://[broken", "bad_url"),
        (f"http://{'a' * 64}:1", "bad_url"),
    ],
)
async def test_what_cannot_be_reached_was_not_sent(
    http: aiohttp.ClientSession, url: str, error_type: str
) -> None:
    with pytest.raises(NotSent) as caught:
        await complete(http, call(url.format(port=free_ports(1)[0])))

    assert caught.value.type == error_type


async def test_a_server_without_tls_was_not_sent_anything(http: aiohttp.ClientSession) -> None:
    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"no TLS here\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        with pytest.raises(NotSent) as caught:
            await complete(http, call(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))

    assert caught.value.type == "tls_failed"


class _NoNames(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        raise OSError(f"no address for {host}:{port} ({family})")

    async def close(self) -> None:
        """Nothing to close."""


async def test_a_name_without_address_was_not_sent() -> None:
    connector = aiohttp.TCPConnector(resolver=_NoNames())
    async with aiohttp.ClientSession(connector=connector) as http:
        with pytest.raises(NotSent) as caught:
            await complete(http, call("http://gpu-box:1"))

    assert caught.value.type == "dns_failed"
