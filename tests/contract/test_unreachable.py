"""Backends that can't be reached: nothing was sent, so nothing ran."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from shared.backends.completion import complete
from shared.backends.errors import NotSent
from shared.backends.http import HttpClient
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
async def test_what_cannot_be_reached_was_not_sent(client: HttpClient, url: str, error_type: str) -> None:
    with pytest.raises(NotSent) as caught:
        await complete(client, call(url.format(port=free_ports(1)[0])))

    assert caught.value.type == error_type


async def test_a_server_without_tls_was_not_sent_anything(client: HttpClient) -> None:
    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"no TLS here\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        with pytest.raises(NotSent) as caught:
            await complete(client, call(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))

    assert caught.value.type == "tls_failed"


async def test_a_name_without_address_was_not_sent() -> None:
    async def no_names(host: str, port: int) -> list[str]:
        raise OSError(f"no address for {host}:{port}")

    async with aclosing(HttpClient(no_names)) as client:
        with pytest.raises(NotSent) as caught:
            await complete(client, call("http://gpu-box:1"))

    assert caught.value.type == "dns_failed"
