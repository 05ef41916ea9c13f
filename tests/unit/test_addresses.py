"""Hosts, origins and networks in settings and requests."""

from __future__ import annotations

from typing import Any

import pytest

from shared.addresses import is_address, is_loopback, without_port
from shared.config import ApiSettings, parse
from shared.errors import ConfigError


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.2", False),
        ("gpubox", False),
    ],
)
def test_only_what_no_other_machine_reaches_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local
    assert ApiSettings(host=host).is_local is local
    assert ApiSettings(host=host).demands_key is not local


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("localhost:8000", "localhost"),
        ("LOCALHOST", "localhost"),
        ("a.b.:80", "a.b"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("a:b", "a:b"),
        ("", ""),
        ("::1", ":"),
    ],
)
def test_the_host_of_an_authority_is_what_stands_before_its_port(authority: str, host: str) -> None:
    assert without_port(authority) == host


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.1", True),
        ("[::1]", True),
        ("::1", False),
        ("[10.0.0.1]", False),
        ("10.0.0.1.evil", False),
        ("1", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_an_address_is_told_from_a_name(host: str, address: bool) -> None:
    assert is_address(host) is address


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("allowed_hosts", "http://gpubox", "such as gpubox.lan"),
        ("allowed_hosts", "gpubox:8000", "such as gpubox.lan"),
        ("allowed_hosts", "*", "such as gpubox.lan"),
        ("cors_origins", "*", "such as https://chat.example.org"),
        ("cors_origins", "chat.example.org", "such as https://chat.example.org"),
        ("cors_origins", "https://chat.example.org/", "such as https://chat.example.org"),
        ("trusted_proxies", "proxy.lan", "such as 10.0.0.0/8"),
        ("trusted_proxies", "10.0.0.1/8", "such as 10.0.0.0/8"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(setting: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse({"api": {setting: [value]}}, "test")
    assert f"api.{setting}.0" in str(told.value)
    assert repr(value) in str(told.value)
    assert allowed in str(told.value)


def test_right_values_are_kept_as_browsers_send_them() -> None:
    given: dict[str, Any] = {
        "allowed_hosts": ["GPUbox.LAN."],
        "cors_origins": ["HTTPS://Chat.Example.org:8443"],
        "trusted_proxies": ["10.0.0.0/8", "::1"],
    }
    api = parse({"api": given}, "test").api
    assert api.allowed_hosts == ("gpubox.lan",)
    assert api.cors_origins == ("https://chat.example.org:8443",)
    assert api.trusted_proxies == ("10.0.0.0/8", "::1/128")


def test_a_key_can_be_demanded_on_loopback_and_waived_elsewhere() -> None:
    assert ApiSettings(require_key=True).demands_key
    assert not ApiSettings(host="0.0.0.0", insecure=True).demands_key
    assert ApiSettings(host="0.0.0.0", insecure=True, require_key=True).demands_key
