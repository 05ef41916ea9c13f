"""API keys for tests: made straight in the store, and presented as clients do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from shared.config import HistorySettings
from shared.store.api_keys import ApiKeyStore, CreateOutcome, new_key
from tests.kit.api_fixture import Answer, ApiClient
from tests.kit.gateway import Desk
from tests.kit.store_fixture import Store


def keys_of(store: Store) -> ApiKeyStore:
    return ApiKeyStore(store.redis, store.keys, HistorySettings(), 86_400.0)


async def made(store: Store, name: str = "alice", **fields: Any) -> str:
    """A new key of this name."""
    text, key = new_key(name, **fields)
    assert await keys_of(store).create(key) is CreateOutcome.CREATED
    return text


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def client_with(key: str, url: str) -> AsyncIterator[ApiClient]:
    """A client that sends this key with each call; answers are compared with the OpenAPI document."""
    async with aiohttp.ClientSession(headers=bearer(key)) as session:
        yield ApiClient(session, url)


async def ask(api: Desk, method: str, path: str, **options: Any) -> Answer:
    """One call as it is, whatever the document says."""
    async with api.http.request(method, api.url + path, **options) as got:
        return Answer(got.status, got.headers, await got.text())
