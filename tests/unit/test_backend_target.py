"""Where a URL leads, and the head of the request that goes there."""

from __future__ import annotations

import pytest

from shared.backends.errors import NotSent
from shared.backends.target import target_of


@pytest.mark.parametrize(
    ("url", "origin", "line", "host"),
    [
        ("http://10.0.0.2:8080/v1/x", ("10.0.0.2", 8080, False), "/v1/x", "10.0.0.2:8080"),
        ("http://gpu_box/v1/x", ("gpu_box", 80, False), "/v1/x", "gpu_box"),
        ("https://GPU.example:443", ("gpu.example", 443, True), "/", "gpu.example"),
        ("https://gpu.example:80/", ("gpu.example", 80, True), "/", "gpu.example:80"),
        ("http://[::1]:8080/v1", ("::1", 8080, False), "/v1", "[::1]:8080"),
        ("http://bücher.example/", ("xn--bcher-kva.example", 80, False), "/", "xn--bcher-kva.example"),
        ("http://h/a b/é?q=1&r=%20#f", ("h", 80, False), "/a%20b/%C3%A9?q=1&r=%20", "h"),
    ],
)
def test_a_url_says_where_to_connect_and_what_to_ask_for(
    url: str, origin: tuple[str, int, bool], line: str, host: str
) -> None:
    target = target_of(url, keep=False)
    head = target.request_head({"X-Request-ID": "r-1"}, 17).decode()

    assert target.origin == origin
    assert head.endswith("\r\n\r\n")
    first, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
    assert first == f"POST {line} HTTP/1.1"
    assert dict(field.split(": ", 1) for field in fields) == {
        "Host": host,
        "User-Agent": "gpu-orchestrator",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Connection": "close",
        "X-Request-ID": "r-1",
        "Content-Length": "17",
    }


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/",
        "h:8080",
        "http://",
        "http://:80/",
        "http://[broken",
        "http://h:port/",
        "http://h:70000/",
        "http://h/\r\nX-Evil: 1",
        "http://h/\0",
        "http://h\n/",
        f"http://{'a' * 64}/",
        "http://a..b/",
        "http://a b/",
        "http://a%0d%0ab/",
    ],
)
def test_what_leads_nowhere_is_told_before_anything_is_sent(url: str) -> None:
    with pytest.raises(NotSent) as caught:
        target_of(url, keep=False)

    assert caught.value.type == "bad_url"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n", "\ra", "a\0"])
def test_a_header_stays_one_header_and_its_value_is_not_told(value: str) -> None:
    target = target_of("http://h/", keep=True)

    with pytest.raises(NotSent) as caught:
        target.request_head({"Authorization": value}, 0)

    assert "Authorization" in caught.value.detail
    assert "Evil" not in caught.value.detail


def test_a_user_in_the_url_is_basic_authorization_unless_there_is_a_key() -> None:
    target = target_of("http://us%65r:p%40ss@h/", keep=True)

    assert b"\r\nAuthorization: Basic dXNlcjpwQHNz\r\n" in target.request_head({}, 0)
    with_key = target.request_head({"Authorization": "Bearer k"}, 0)
    assert b"Basic" not in with_key
    assert b"\r\nHost: h\r\n" in with_key
    assert b"Connection" not in with_key
