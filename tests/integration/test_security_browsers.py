"""A web page must not use the api of the person who looks at it, on loopback either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from multidict import CIMultiDict

from tests.kit.api_fixture import Answer
from tests.kit.api_keys import bearer, made
from tests.kit.gateway import CHAT, Desk, desk
from tests.kit.store_fixture import Store

CHAT_APP = "https://chat.example.org"
_SETTINGS = {"allowed_hosts": ["GPUbox.lan"], "cors_origins": [CHAT_APP]}


@pytest.fixture
async def api(store: Store, tmp_path: Path) -> AsyncIterator[Desk]:
    """An api without keys that pages of one origin may call."""
    async with desk(store, tmp_path, api=_SETTINGS) as served:
        yield served


async def _ask(api: Desk, method: str, headers: Mapping[str, str], path: str = "/v1/jobs") -> Answer:
    async with api.http.request(method, api.url + path, headers=headers, json={"prompt": "hi"}) as got:
        return Answer(got.status, got.headers, await got.text())


def _port(api: Desk) -> str:
    return api.url.rpartition(":")[2]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:{port}",
        "localhost:{port}",
        "localhost",
        "LocalHost.",
        "[::1]:{port}",
        "10.1.2.3:8000",
        "gpubox.lan",
        "GPUBOX.lan:8000",
    ],
)
async def test_an_address_localhost_and_a_name_of_the_settings_are_answered(api: Desk, host: str) -> None:
    assert (await _ask(api, "GET", {"Host": host.format(port=_port(api))})).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a@localhost",
        "1",
        "::1",
        "[localhost]",
        "gpubox",
    ],
)
async def test_a_name_that_nobody_gave_the_api_is_refused_on_either_surface(api: Desk, host: str) -> None:
    """DNS rebinding: the page's own name leads to 127.0.0.1, and its browser takes us for its own site."""
    problem = (await _ask(api, "GET", {"Host": host})).problem(421)
    assert "api.allowed_hosts" in problem["detail"]
    answer = await api.post(CHAT, Host=host)
    assert (answer.status, answer.body["error"]["code"]) == (421, "unknown_host")
    assert (await _ask(api, "GET", {"Host": host}, "/healthz")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"},
        {"Origin": f"{CHAT_APP}.evil.example"},
        {"Origin": "http://chat.example.org"},
    ],
    ids=str,
)
async def test_the_page_of_another_site_changes_nothing(
    api: Desk, store: Store, headers: dict[str, str]
) -> None:
    told = {name: value.format(port=_port(api)) for name, value in headers.items()}
    before = await store.jobs.counts()

    assert (await _ask(api, "POST", told)).problem(403)["type"].endswith("cross-site")
    assert (await _ask(api, "DELETE", told, "/v1/gpu/models/alpha")).status == 403
    assert (await api.post(CHAT, **told)).body["error"]["code"] == "cross_site"

    assert await store.jobs.counts() == before
    read = await _ask(api, "GET", told)
    assert "Access-Control-Allow-Origin" not in read.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:{port}"},
        {"Origin": "https://gpubox.lan", "Host": "gpubox.lan"},
        {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": CHAT_APP, "Sec-Fetch-Site": "cross-site"},
        {"Origin": CHAT_APP},
    ],
    ids=str,
)
async def test_programs_its_own_pages_and_those_of_the_settings_may(
    api: Desk, headers: dict[str, str]
) -> None:
    told = {name: value.format(port=_port(api)) for name, value in headers.items()}
    assert (await _ask(api, "POST", told)).status == 202


async def test_a_page_of_an_allowed_origin_is_asked_and_answered_as_browsers_want_it(api: Desk) -> None:
    wants = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = await _ask(api, "OPTIONS", {"Origin": CHAT_APP, **wants})
    answer = await _ask(api, "POST", {"Origin": CHAT_APP})

    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == CHAT_APP
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Origin"] == CHAT_APP
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers["Vary"]


async def test_pages_of_other_origins_are_told_nothing(api: Desk) -> None:
    wants = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = await _ask(api, "OPTIONS", wants)
    assert preflight.status == 405
    assert not [name for name in preflight.headers if name.startswith("Access-Control-")]


async def test_without_the_setting_no_origin_is_allowed(store: Store, tmp_path: Path) -> None:
    async with desk(store, tmp_path) as api:
        wants = {"Origin": api.url, "Access-Control-Request-Method": "POST"}
        answers = [await _ask(api, "OPTIONS", wants), await _ask(api, "GET", {"Origin": api.url})]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("Access-Control-")]


async def test_a_refusal_for_want_of_a_key_can_be_read_by_an_allowed_page(
    store: Store, tmp_path: Path
) -> None:
    key = await made(store)
    async with desk(store, tmp_path, api=_SETTINGS) as api:
        refused = await _ask(api, "POST", {"Origin": CHAT_APP})
        allowed = await _ask(api, "POST", {"Origin": CHAT_APP, **bearer(key)})
        foreign = await _ask(api, "POST", {"Origin": "https://evil.example", **bearer(key)})
    assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, CHAT_APP)
    assert (allowed.status, foreign.status) == (202, 403)


async def test_several_names_in_one_request_are_none(api: Desk) -> None:
    hosts = CIMultiDict([("Host", "localhost"), ("Host", "evil.example")])
    async with api.http.get(f"{api.url}/v1/jobs", headers=hosts) as got:
        assert got.status in (400, 421)
