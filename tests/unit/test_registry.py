"""Registrations: what is accepted of a model, what is completed, and the specification's three."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from shared.registry import SPECIFICATION_MODELS, Registration
from shared.states import BackendType


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({}, "has neither 'port' nor 'url': give one of them"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"url": "10.0.0.1:8000"}, "url"),
        ({"url": "http://"}, "url"),
        ({"port": 1, "name": ""}, "name"),
        ({"port": 1, "name": "a b"}, "name"),
        ({"port": 1, "name": "-a"}, "name"),
        ({"port": 1, "name": "a\n"}, "name"),
        ({"port": 1, "name": "x" * 129}, "name"),
        ({"port": 1, "serves": ["ok", "not ok"]}, "serves"),
        ({"port": 1, "agent_types": ["a:b"]}, "agent_types"),
        ({"port": 1, "backend": "ollama"}, "llama_cpp"),
        ({"port": 1, "slots": 0}, "slots"),
        ({"port": 1, "slots": 1025}, "slots"),
        ({"port": 1, "context_tokens": 0}, "context_tokens"),
        ({"port": 1, "vram_gb": -1}, "vram_gb"),
        ({"port": 1, "vram_gb": float("nan")}, "vram_gb"),
        ({"port": 1, "ttl_s": 0}, "ttl_s"),
        ({"port": 1, "tokens_per_second": 0}, "tokens_per_second"),
        ({"port": 1, "tokens_per_second": float("nan")}, "tokens_per_second"),
        ({"port": 1, "source": "elsewhere"}, "source"),
        ({"port": 1, "vram": 6}, "vram"),
    ],
)
def test_a_wrong_registration_is_refused(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        Registration.model_validate({"name": "alpha", **fields})


@pytest.mark.parametrize("name", ["alpha", "a/b:c", "org/model@v1.2+q4", "0", "x" * 128])
def test_names_as_backends_use_them_are_taken(name: str) -> None:
    assert Registration(name=name, port=1).served_names == (name,)


def test_a_model_that_serves_other_names_does_not_answer_to_its_own() -> None:
    assert Registration(name="a", port=1, serves=("x", "y")).served_names == ("x", "y")


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"port": 8081}, "http://gpu-host:8081"),
        ({"url": "https://10.0.0.1:8000/"}, "https://10.0.0.1:8000"),
        ({"url": "http://10.0.0.1/llm/", "port": 1}, "http://10.0.0.1/llm"),
    ],
)
def test_a_url_wins_and_a_bare_port_is_completed(fields: dict[str, Any], url: str) -> None:
    assert Registration(name="a", **fields).base_url("gpu-host") == url


def test_only_what_differs_from_the_defaults_is_stored() -> None:
    entry = Registration(name="a", port=1)
    assert entry.model_dump_json(exclude_defaults=True) == '{"name":"a","port":1}'
    assert Registration.model_validate_json('{"name":"a","port":1}') == entry


def test_the_specifications_models_are_simulated_and_as_it_says() -> None:
    shown = {model.name: (model.vram_gb, model.port, model.agent_types) for model in SPECIFICATION_MODELS}
    assert shown == {
        "tiny-llama-1b": (2.3, 8080, ("Chat",)),
        "bi-medix2": (6.5, 8081, ("Chat", "MedicalQA")),
        "openins-llama3-8b": (7.8, 8084, ("Chat", "Insurance")),
    }
    assert all(model.simulated and model.source == "file" for model in SPECIFICATION_MODELS)
    assert {model.backend for model in SPECIFICATION_MODELS} == {BackendType.LLAMA_CPP}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "auto"}, "another name"),
        ({"name": "a", "serves": ("auto:Chat",)}, "another name"),
        ({"name": "a", "tokens_per_second": float("inf")}, "finite"),
        ({"name": "a", "ttl_s": float("inf")}, "finite"),
        ({"name": "a", "host": ""}, "at least 1 character"),
        ({"name": "a", "gpu": ""}, "at least 1 character"),
        ({"name": "a", "gpu": -3}, "greater than or equal to 0"),
    ],
)
def test_what_would_collide_with_our_own_names_or_is_no_number_is_refused(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Registration(port=1, **fields)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://[::1", "no address"),
        ("http://h:99999", "no address"),
        ("http://@", "user or password|must name a host"),
        ("http://:80", "must name a host"),
        ("http://%zz", "must name a host"),
        ("http://*:80", "must name a host"),
        ("http://user:s3cret@10.0.0.2:8000", "user or password"),
        ("http://10.0.0.2:8000/v1?key=1", "leave out"),
        ("http://10.0.0.2:0", "from 1 to 65535"),
    ],
)
def test_a_url_that_no_server_has_or_that_holds_a_password_is_refused(url: str, said: str) -> None:
    """One such entry would end every probe of its monitor, or show the password with every decision."""
    with pytest.raises(ValidationError, match=said):
        Registration(name="a", url=url)


@pytest.mark.parametrize("url", ["http://[::1]:8000", "http://gpu_host.local:8000/llm", "https://10.0.0.2/"])
def test_addresses_of_servers_are_taken(url: str) -> None:
    assert Registration(name="a", url=url).url == url


@pytest.mark.parametrize(
    ("fields", "port"),
    [
        ({"port": 8081}, 8081),
        ({"url": "http://h:8000"}, 8000),
        ({"url": "http://h"}, 80),
        ({"url": "https://h"}, 443),
    ],
)
def test_the_port_is_known_also_of_a_url(fields: dict[str, Any], port: int) -> None:
    assert Registration(name="a", **fields).listening_port == port
