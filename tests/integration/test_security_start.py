"""Where the api may be bound without keys, and what it says when it may not."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.kit.api_fixture import ApiProcess, api_config
from tests.kit.api_keys import keys_of, made
from tests.kit.store_fixture import Store
from tests.kit.waiting import wait_until


def _process(store: Store, directory: Path, **api: Any) -> ApiProcess:
    return ApiProcess(directory, api_config(store.url, directory, api=api))


def _output(process: ApiProcess) -> str:
    return process.log_path.read_text(encoding="utf-8")


def _status(process: ApiProcess, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", process.settings.api.port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


async def _answers(process: ApiProcess, path: str, status: HTTPStatus) -> None:
    async def answered() -> bool:
        assert process.poll() is None, _output(process)
        return await asyncio.to_thread(_status, process, path) == status

    await wait_until(answered, f"{path} answers {status}", timeout_s=60)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "0.0.0.0"}, ("api.host = '0.0.0.0'", "api.insecure")),
        ({"require_key": True}, ("api.require_key",)),
    ],
    ids=str,
)
@pytest.mark.parametrize("revoked", [False, True])
async def test_without_a_key_it_does_not_start_where_one_is_needed_and_says_how_to_make_one(
    store: Store, tmp_path: Path, settings: dict[str, Any], named: tuple[str, ...], revoked: bool
) -> None:
    if revoked:
        await made(store)
        await keys_of(store).revoke("alice")
    process = _process(store, tmp_path, **settings)
    process.launch()
    code = await wait_until(
        lambda: None if process.poll() is None else (process.poll(),), "it ends", timeout_s=60
    )

    assert code == (2,)
    (said,) = [line for line in _output(process).splitlines() if "ERROR" in line]
    assert "gpu-orchestrator keys create NAME" in said
    assert all(name in said for name in named)
    assert "Traceback" not in _output(process)


async def test_with_a_key_it_starts_where_one_is_needed_and_asks_for_it(store: Store, tmp_path: Path) -> None:
    await made(store)
    process = _process(store, tmp_path, require_key=True)
    process.launch()
    try:
        await _answers(process, "/healthz", HTTPStatus.OK)
        await _answers(process, "/readyz", HTTPStatus.UNAUTHORIZED)
    finally:
        process.stop()


async def test_insecure_it_starts_anywhere_and_says_so_loudly(store: Store, tmp_path: Path) -> None:
    process = _process(store, tmp_path, host="0.0.0.0", insecure=True)
    process.start()
    try:
        (warning,) = [line for line in _output(process).splitlines() if "INSECURE" in line]
        assert "WARNING" in warning
        assert "api.host = 0.0.0.0" in warning
    finally:
        process.stop()


async def test_until_it_has_read_the_keys_it_answers_nothing_but_the_health_check(tmp_path: Path) -> None:
    config = api_config("redis://127.0.0.1:1/0", tmp_path, api={"require_key": True})
    process = ApiProcess(tmp_path, config)
    process.launch()
    try:
        await _answers(process, "/healthz", HTTPStatus.OK)
        for path in ("/", "/readyz", "/v1/models", "/v1/jobs"):
            assert await asyncio.to_thread(_status, process, path) == HTTPStatus.SERVICE_UNAVAILABLE
    finally:
        process.stop()


async def test_on_loopback_it_starts_without_keys_and_says_that_none_is_asked_for(
    store: Store, tmp_path: Path
) -> None:
    process = _process(store, tmp_path)
    process.start()
    try:
        assert "no API key was ever made: none is asked for" in _output(process)
        assert "INSECURE" not in _output(process)
    finally:
        process.stop()
